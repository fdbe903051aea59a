"""The tables behind the group ``emoji/abstract``: what stands in which relation to what, among the emoji that are drawn.

Each relation has wordings, of which a query gets one, and lines ``references: answers``, by the names of the package ``emoji``, with plain
apostrophes. Every reference of a line makes a query, and every answer is right. ``@role`` stands for all pictures of a role, ``@role/man``
for those of one gender, a word in capitals for a group of ``GROUPS``. A line lists all that a person would accept, in the gallery of all
pictures that are drawn; where that cannot be listed, there is no line.
"""

GROUPS = {
    "HAPPY": "grinning_face beaming_face_with_smiling_eyes face_with_tears_of_joy grinning_face_with_big_eyes smiling_face "
    "grinning_face_with_smiling_eyes grinning_squinting_face smiling_face_with_smiling_eyes slightly_smiling_face partying_face "
    "rolling_on_the_floor_laughing smiling_face_with_open_hands smiling_face_with_halo star-struck smiling_face_with_hearts",
    "SAD": "frowning_face slightly_frowning_face crying_face loudly_crying_face disappointed_face pensive_face worried_face "
    "sad_but_relieved_face frowning_face_with_open_mouth weary_face anguished_face",
    "HAPPY_CAT": "grinning_cat grinning_cat_with_smiling_eyes cat_with_tears_of_joy smiling_cat_with_heart-eyes",
    "SAD_CAT": "crying_cat pouting_cat weary_cat",
    "TREES": "deciduous_tree evergreen_tree palm_tree",
    "FLOWERS": "tulip cherry_blossom rose hibiscus sunflower blossom bouquet white_flower lotus hyacinth",
    "FISH": "fish tropical_fish blowfish",
    "SHEEP": "ewe ram",
    "COWS": "cow cow_face",
    "CHICKENS": "chicken rooster",
    "MICE": "mouse mouse_face rat",
    "RABBITS": "rabbit rabbit_face",
    "INSECTS": "fly mosquito ant bug beetle lady_beetle cricket cockroach butterfly honeybee",
    "MEAT": "meat_on_bone poultry_leg cut_of_meat bacon",
    "GREENS": "herb leafy_green seedling shamrock four_leaf_clover leaf_fluttering_in_wind",
    "BIRDS": "bird black_bird dove eagle duck owl parrot swan flamingo peacock goose penguin chicken rooster turkey dodo",
    "PENS": "pen fountain_pen pencil crayon black_nib",
    "BOOKS": "books open_book closed_book green_book blue_book orange_book notebook notebook_with_decorative_cover ledger",
    "COMPUTERS": "laptop desktop_computer keyboard computer_mouse trackball",
    "LAB": "microscope test_tube petri_dish alembic",
    "CUTTERS": "scissors razor",
    "SCREWS": "wrench screwdriver hammer_and_wrench nut_and_bolt toolbox hammer",
    "SITE": "hammer hammer_and_wrench hammer_and_pick pick shovel ladder toolbox screwdriver carpentry_saw wrench bucket brick "
    "rescue_worker's_helmet",
    "PLANES": "airplane small_airplane airplane_departure airplane_arrival helicopter",
    "MAIL": "postbox closed_mailbox_with_lowered_flag closed_mailbox_with_raised_flag open_mailbox_with_raised_flag "
    "open_mailbox_with_lowered_flag post_office Japanese_post_office",
    "POWER": "battery electric_plug low_battery",
    "NIGHT": "night_with_stars bridge_at_night milky_way",
    "SEA": "water_wave",
    "MONEY": "coin yen_banknote dollar_banknote euro_banknote pound_banknote money_bag money_with_wings",
    "CLOCKS": "mantelpiece_clock hourglass_done hourglass_not_done",
    "PHONES": "telephone telephone_receiver",
    "DRY_SKY": "sun sun_with_face sun_behind_cloud sun_behind_small_cloud rainbow",
}

Table = tuple[tuple[str, ...], str]  # wordings, lines

RELATIONS: dict[str, Table] = {
    "opposite_feeling": (
        ("the opposite feeling", "how one feels when everything turns around", "in the opposite mood"),
        """
        HAPPY: SAD
        frowning_face slightly_frowning_face crying_face loudly_crying_face disappointed_face pensive_face worried_face: HAPPY
        HAPPY_CAT: SAD_CAT
        SAD_CAT: HAPPY_CAT
        hot_face: cold_face
        cold_face: hot_face
        beating_heart growing_heart: broken_heart
        """,
    ),
    "grown_up": (
        ("what this one becomes when grown", "the same, years later", "once it has grown up"),
        """
        seedling: TREES sunflower ear_of_corn sheaf_of_rice herb potted_plant leafy_green
        baby_chick front-facing_baby_chick hatching_chick: CHICKENS
        bug: butterfly
        chestnut: deciduous_tree
        coconut: palm_tree
        baby: @adult @elder
        boy: @adult/man @elder/man
        girl: @adult/woman @elder/woman
        man: @elder/man
        woman: @elder/woman
        """,
    ),
    "tool": (
        ("the tool for this job", "what is needed for this work", "something to do this with"),
        """
        firefighter man_firefighter woman_firefighter: fire_extinguisher axe ladder bucket fire_engine
        cook man_cook woman_cook: kitchen_knife cooking pot_of_food shallow_pan_of_food fork_and_knife spoon
        artist man_artist woman_artist: artist_palette paintbrush crayon pencil
        singer man_singer woman_singer: microphone studio_microphone
        scientist man_scientist woman_scientist: LAB goggles
        health_worker man_health_worker woman_health_worker: stethoscope syringe thermometer adhesive_bandage pill x-ray
        judge man_judge woman_judge: balance_scale
        mechanic man_mechanic woman_mechanic: SCREWS
        construction_worker man_construction_worker woman_construction_worker: SITE
        detective man_detective woman_detective: magnifying_glass_tilted_left magnifying_glass_tilted_right flashlight camera
        student man_student woman_student: BOOKS PENS backpack memo spiral_notepad
        technologist man_technologist woman_technologist: COMPUTERS
        ninja: dagger crossed_swords kitchen_knife
        person_getting_haircut man_getting_haircut woman_getting_haircut: CUTTERS hair_pick
        person_fencing: crossed_swords dagger
        writing_hand: PENS
        ballet_dancer: ballet_shoes
        locked: key old_key
        tooth: toothbrush
        nut_and_bolt: wrench hammer_and_wrench
        thread yarn: sewing_needle
        """,
    ),
    "vehicle": (
        ("the vehicle for this", "what this one travels in", "something to drive, sail or fly for this one"),
        """
        firefighter man_firefighter woman_firefighter: fire_engine
        police_officer man_police_officer woman_police_officer: police_car oncoming_police_car motorcycle
        farmer man_farmer woman_farmer: tractor pickup_truck
        astronaut man_astronaut woman_astronaut: rocket
        pilot man_pilot woman_pilot: PLANES
        health_worker woman_health_worker man_health_worker: ambulance
        Santa_Claus: sled
        alien alien_monster: flying_saucer
        person_biking man_biking woman_biking: bicycle
        person_rowing_boat: canoe
        pirate_flag: ship sailboat
        railway_track: locomotive railway_car high-speed_train bullet_train train metro light_rail tram tram_car
        motorway: automobile oncoming_automobile sport_utility_vehicle bus oncoming_bus minibus delivery_truck articulated_lorry taxi
            oncoming_taxi pickup_truck motorcycle
        """,
    ),
    "food": (
        ("what this animal eats", "something for it to eat", "its favourite meal"),
        """
        RABBITS: carrot GREENS
        mouse mouse_face: cheese_wedge sheaf_of_rice ear_of_corn peanuts
        monkey monkey_face gorilla orangutan: banana mango
        bear: honey_pot FISH blueberries
        cat cat_face black_cat: FISH MICE bird glass_of_milk
        dog dog_face poodle: bone MEAT
        chipmunk: chestnut peanuts
        horse horse_face: carrot red_apple green_apple sheaf_of_rice GREENS
        COWS: GREENS sheaf_of_rice ear_of_corn
        frog: INSECTS worm
        spider: INSECTS
        penguin: FISH shrimp squid
        CHICKENS: worm ear_of_corn sheaf_of_rice INSECTS
        owl: MICE worm
        fox: CHICKENS RABBITS MICE duck goose
        wolf: SHEEP goat RABBITS deer
        honeybee: FLOWERS
        butterfly: FLOWERS
        bat: INSECTS
        vampire mosquito: drop_of_blood
        beaver: wood
        polar_bear: seal FISH
        seal: FISH squid shrimp
        otter: FISH crab oyster
        lion: zebra deer water_buffalo MEAT
        koala: leaf_fluttering_in_wind herb
        snail: GREENS
        """,
    ),
    "place": (
        ("where this one lives or works", "the place where this belongs", "where to find it"),
        """
        bird black_bird: empty_nest nest_with_eggs
        spider: spider_web
        fish tropical_fish dolphin whale shark octopus: SEA
        prince princess person_with_crown: castle Japanese_castle
        judge woman_judge man_judge: classical_building
        health_worker man_health_worker woman_health_worker: hospital
        teacher man_teacher woman_teacher student: school
        office_worker man_office_worker woman_office_worker: office_building
        factory_worker man_factory_worker woman_factory_worker: factory
        person_in_bed: bed
        person_taking_bath: bathtub
        camel two-hump_camel cactus: desert
        envelope love_letter incoming_envelope: MAIL
        clown_face: circus_tent
        skull: coffin headstone
        dollar_banknote euro_banknote: bank ATM_sign credit_card money_bag
        locomotive: station railway_track
        bus: bus_stop motorway
        film_projector: cinema
        framed_picture: classical_building
        """,
    ),
    "later": (
        ("later the same day", "a few hours later", "when the day has gone on"),
        """
        sunrise_over_mountains sunrise: sunset cityscape_at_dusk NIGHT sun
        cityscape_at_dusk: night_with_stars bridge_at_night
        cityscape: cityscape_at_dusk night_with_stars bridge_at_night sunset
        sunset: NIGHT cityscape_at_dusk
        """,
    ),
    "winter": (
        ("the same thing in winter", "what there is instead when it snows", "its winter version"),
        """
        snowman_without_snow: snowman
        deciduous_tree: leafless_tree
        cloud_with_rain: cloud_with_snow
        mountain: snow-capped_mountain mount_fuji
        person_surfing man_surfing woman_surfing: @snowboarder skier
        roller_skate: ice_skate
        skateboard: sled skis @snowboarder
        field_hockey: ice_hockey
        flat_shoe thong_sandal: woman's_boot hiking_boot
        t-shirt: coat
        droplet: ice snowflake
        bicycle: sled skis
        """,
    ),
    "summer": (
        ("the same thing in summer", "what there is instead when it is hot", "its summer version"),
        """
        leafless_tree: deciduous_tree
        ice_skate: roller_skate
        ice_hockey: field_hockey
        coat: t-shirt running_shirt
        cloud_with_snow: cloud_with_rain
        snow-capped_mountain: mountain
        woman's_boot: woman's_sandal thong_sandal flat_shoe
        snowboarder: @surfing
        ice: droplet
        """,
    ),
    "source": (
        ("where this comes from", "what gives us this", "what this was before"),
        """
        glass_of_milk: COWS goat
        egg: CHICKENS
        yarn: SHEEP
        honey_pot: honeybee
        spider_web: spider
        bacon: pig pig_face boar
        poultry_leg: CHICKENS turkey
        cut_of_meat: COWS ox water_buffalo
        fried_shrimp: shrimp
        french_fries: potato
        wine_glass: grapes
        popcorn: ear_of_corn
        cheese_wedge butter: glass_of_milk COWS goat
        cooked_rice rice_ball: sheaf_of_rice
        coconut: palm_tree
        fallen_leaf: deciduous_tree maple_leaf leaf_fluttering_in_wind
        wood: TREES
        cherries: cherry_blossom deciduous_tree
        feather: BIRDS
        nest_with_eggs: bird black_bird
        baby_chick: egg hatching_chick CHICKENS
        collision: bomb firecracker
        wilted_flower: rose
        pie: red_apple green_apple cherries
        """,
    ),
    "body_part": (
        ("the part of the body for this", "where it is worn or used", "what it goes on"),
        """
        headphone: @ear
        glasses sunglasses goggles: eye eyes
        lipstick: mouth biting_lip
        man's_shoe running_shoe high-heeled_shoe woman's_sandal woman's_boot hiking_boot flat_shoe thong_sandal ballet_shoes: @foot
        socks: @foot @leg
        ring gloves: @hand @raised_hand
        toothbrush: tooth mouth
        stethoscope: anatomical_heart lungs
        """,
    ),
    "needs": (
        ("what this needs to work", "what keeps this going", "it does nothing without this"),
        """
        flashlight mobile_phone laptop: POWER
        light_bulb television desktop_computer: electric_plug
        automobile taxi motorcycle delivery_truck motor_scooter tractor racing_car: fuel_pump oil_drum
        candle firecracker: fire
        sailboat kite wind_chime: wind_face leaf_fluttering_in_wind
        locked_with_key: key old_key
        potted_plant seedling: droplet sun sun_with_face cloud_with_rain
        train: railway_track
        """,
    ),
    "before_it": (
        ("what was used before this was invented", "the old way of doing the same", "its ancestor, long ago"),
        """
        mobile_phone: PHONES pager
        e-mail: envelope incoming_envelope love_letter postal_horn
        dvd optical_disk: videocassette floppy_disk computer_disk
        light_bulb: candle diya_lamp
        watch alarm_clock stopwatch: CLOCKS
        automobile: horse horse_face donkey
        tractor: ox horse horse_face water_buffalo
        credit_card: MONEY
        closed_book: scroll
        motor_boat speedboat: sailboat canoe
        pen: fountain_pen black_nib feather pencil
        """,
    ),
    "next": (
        ("what happens next", "a moment later", "how this goes on"),
        """
        bomb: collision fire
        egg: hatching_chick baby_chick
        hatching_chick: baby_chick front-facing_baby_chick
        cloud_with_rain: rainbow DRY_SKY
        airplane_departure: airplane_arrival airplane
        hourglass_not_done: hourglass_done
        ring: wedding
        cherry_blossom: cherries
        shopping_cart: receipt credit_card MONEY shopping_bags
        pregnant_woman: @baby @breast-feeding baby_bottle @feeding_baby
        soccer_ball: goal_net
        firecracker: collision fireworks
        """,
    ),
}
