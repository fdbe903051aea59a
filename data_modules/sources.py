"""Where the pictures and annotations of each benchmark come from, and where its data module looks for them."""

from __future__ import annotations

FASHIONIQ = "fashioniq"  # the only one whose pictures can be fetched without asking anybody

SOURCES = {
    "shoes": """\
Shoes: 14,658 pictures of the Attribute Discovery Dataset (Berg et al.). This command cannot fetch them.
  pictures     http://tamaraberg.com/attributesDataset/index.html; unpack its folders womens_* as they are
  annotations  https://github.com/XiaoxiaoGuo/fashion-retrieval, folder dataset
Layout:
  {root}/relative_captions_shoes.json, train_im_names.txt, eval_im_names.txt
  {root}/womens_*/*/img_womens_*.jpg""",
    "cirr": """\
CIRR: 21,551 pictures of NLVR2, which are given out on request only. This command cannot fetch them.
  pictures     fill in the form of https://github.com/lil-lab/nlvr/tree/master/nlvr2#direct-image-download; the answer may take a week.
               NLVR2's own lists of links are no way: many are dead, and the folders of train are missing.
  annotations  git clone -b cirr_dataset https://github.com/Cuberick-Orion/CIRR.git {root}
Layout:
  {root}/captions/cap.rc2.*.json, {root}/image_splits/split.rc2.*.json
  {root}/img_raw/train/*/*.png, {root}/img_raw/dev/*.png, {root}/img_raw/test1/*.png""",
    "circo": """\
CIRCO: the 123,403 unlabeled pictures of COCO 2017 (19 GB). This command does not fetch them: they are one archive.
  pictures     https://cocodataset.org/#download, "2017 Unlabeled images" and "2017 Unlabeled Image info"
  annotations  git clone https://github.com/miccunifi/CIRCO.git {root}
Layout:
  {root}/annotations/val.json, test.json
  {root}/COCO2017_unlabeled/unlabeled2017/*.jpg
  {root}/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json""",
    "genecis": """\
GeneCIS: pictures of COCO 2017 val (object tasks) and of Visual Genome 1.2 (attribute tasks). This command does not fetch them: they are
archives.
  pictures     https://cocodataset.org/#download, "2017 Val images"; https://homes.cs.washington.edu/~ranjay/visualgenome/api.html, both
               parts of version 1.2 in one folder
  annotations  https://github.com/facebookresearch/genecis, folder genecis
Layout:
  {root}/genecis/focus_attribute.json, change_attribute.json, focus_object.json, change_object.json
  {root}/val2017/*.jpg (5,000), {root}/VG_100K_all/*.jpg (108,249)""",
    "emoji": "EmojiCIR comes with pip, there is nothing to download: cir fit --config emoji.yaml",
    "triplets": "Your own triplets and pictures: there is nothing to download; cir fit --config triplets.yaml --data.root {root}",
}
