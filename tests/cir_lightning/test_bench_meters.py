"""Each stage's own time, multiplications, tokens and memory, against hand-worked numbers."""

import pytest
import torch
from fakes.build import built_encoder, random_features
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from cir_lightning.bench.meters import Clock, Counter, Ledger, Peak
from cir_lightning.bench.results import Work
from cir_lightning.bench.rounds import WARM_UP, Rounds, stepping
from data_modules.stages import BACKWARD, LLM, stage

CPU = torch.device("cpu")


@pytest.fixture
def time():
    """Goes on when it is told to."""

    def passes(seconds):
        passes.now += seconds

    passes.now = 100.0
    return passes


def clock(time):
    return Clock(CPU, lambda: time.now)


def seconds(ledger):
    return {name: account[0] for name, account in ledger.accounts.items()}


def test_a_stage_has_only_its_own_time(time):
    ledger = Ledger(clock(time).lap)
    with ledger.open():
        time(1)
        with stage("loss"):
            time(2)
            with stage("gather"):
                time(4)
            time(8)
            with stage("gather"):
                time(16)
        time(32)
        with stage("loss"):
            time(64)
    time(128)  # after it
    assert seconds(ledger) == {"other": 33, "loss": 74, "gather": 20}
    assert sum(seconds(ledger).values()) == 127


def test_opened_again_it_begins_anew(time):
    ledger = Ledger(clock(time).lap)
    for passed in (3, 5):
        with ledger.open(), stage("a"):
            time(passed)
    assert seconds(ledger) == {"other": 0, "a": 5}


def test_what_a_backward_pass_replays_belongs_to_it(time):
    ledger = Ledger(clock(time).lap)
    with ledger.open():
        with stage(LLM):
            time(1)
        with stage(BACKWARD):
            time(2)
            with stage(LLM):
                time(4)
                with stage("caption"):
                    time(8)
            time(16)
    assert seconds(ledger) == {"other": 0, LLM: 1, BACKWARD: 30}


def test_a_peak_is_of_the_stage_that_it_was_in():
    laps = iter([(0.0,), (3.0,), (7.0,), (5.0,), (2.0,), (1.0,)])
    ledger = Ledger(lambda: next(laps), max)
    with ledger.open(), stage("a"), stage("b"):
        pass
    assert ledger.accounts == {"other": (3.0,), "a": (7.0,), "b": (5.0,)}


def counted(encoder, work):
    counter = Counter(encoder)
    ledger = Ledger(counter.lap)
    with counter.open(), ledger.open():
        work()
    return ledger.accounts


@pytest.fixture(scope="module")
def encoder():
    return built_encoder().eval()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_flops_of_known_products(encoder, mode):
    rows, inner, columns = torch.ones(8, 16), torch.ones(16, 4), torch.nn.Linear(16, 4)

    def work():
        with stage("product"):
            rows @ inner
        with stage("linear"):
            columns(rows)
        with stage("attention"):
            F.scaled_dot_product_attention(*torch.ones(3, 2, 5, 7, 6))  # 2 pictures, 5 heads, 7 tokens of 6
        with stage("nothing"):
            rows + 1

    with mode():
        flops = {name: account[0] for name, account in counted(encoder, work).items()}
    assert flops == {"product": 1024, "linear": 1024, "attention": 2 * (2 * 2 * 5 * 7 * 7 * 6), "nothing": 0, "other": 0}


def test_flops_of_a_backward_pass(encoder):
    left, right = torch.ones(8, 16, requires_grad=True), torch.ones(16, 4, requires_grad=True)

    def work():
        out = (left @ right).sum()
        with stage(BACKWARD):
            out.backward()

    assert counted(encoder, work)[BACKWARD][0] == 2 * 1024


def test_flops_of_attention_that_has_a_kernel_of_its_own_in_evaluation(encoder):
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.ones(3, 5, 16)
    with torch.inference_mode():
        flops = sum(account[0] for account in counted(encoder, lambda: attention(x, x, x, need_weights=False)).values())
    assert flops == 2 * 15 * 16 * (4 * 16) + 2 * (2 * 3 * 5 * 5 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


def test_compiled_parts_are_counted_as_they_are_uncompiled(encoder):
    part = torch.compile(lambda x: x @ x, backend="eager")
    part(torch.ones(4, 4))
    assert sum(account[0] for account in counted(encoder, lambda: part(torch.ones(4, 4))).values()) == 2 * 4**3


def test_tokens_real_and_computed(encoder):
    def work():
        sight = encoder.see(random_features(2))
        encoder.encode_query(sight, ["but red", "but red but red but red"])

    encoder.backbone.packs, packs = False, encoder.backbone.packs
    try:
        with torch.inference_mode():
            accounts = counted(encoder, work)
    finally:
        encoder.backbone.packs = packs
    around = 1 + 4 + 4 + 2 + 1  # <s>, Connector, two prompts of two tokens, " Edit" and ":", ":"
    real, computed = accounts[LLM][1:]
    assert (computed - real, computed) == (4, 2 * (around + 6))
    assert "read" not in vars(encoder.backbone)


def test_tokens_of_a_replay_are_the_backward_passes(encoder):
    def work():
        sight = encoder.see(random_features(2))
        out = checkpoint(lambda: encoder.encode_target(sight), use_reentrant=False)
        with stage(BACKWARD):
            out.sum().backward()

    accounts = counted(encoder, work)
    assert accounts[LLM][1:] == accounts[BACKWARD][1:]
    assert accounts[LLM][2] > 0


def test_memory_of_a_stage():
    peak = Peak(CPU)
    ledger = Ledger(peak.lap, max)
    with ledger.open():
        with stage("large"):
            torch.ones(2**24)  # 64 MiB
        with stage("small"):
            torch.ones(2**10)
    memory = {name: account[0] / 2**20 for name, account in ledger.accounts.items()}
    assert 60 < memory["large"] < 90
    assert memory["small"] < 30


def test_memory_that_the_system_does_not_tell(tmp_path, monkeypatch):
    assert Peak.readable(CPU)
    monkeypatch.setattr("cir_lightning.bench.meters._CLEAR", tmp_path / "none" / "clear_refs")
    assert not Peak.readable(CPU)
    work = Work("gallery", 1)
    assert len(list(Rounds(work, built_encoder(), CPU, rounds=1))) == WARM_UP + 2 + 1
    assert work.peak is None


def test_rounds_are_timed_counted_and_remembered(tmp_path):
    work, encoder = Work("gallery", 2), built_encoder().eval()
    rounds = Rounds(work, encoder, CPU, rounds=3, trace=tmp_path / "new" / "a.trace.json.gz")
    seen = []
    for number in rounds:
        seen.append(number)
        encoder.encode_target(encoder.see(random_features(2)))
    assert seen == list(range(len(rounds)))
    assert len(rounds) == WARM_UP + 2 * 3 + 3
    assert (len(work.seconds), len(work.unobserved)) == (3, 3)
    assert all({"Connector", "LLM forward", "other"} < set(one) for one in work.seconds)
    assert work.flops["LLM forward"] > 0
    assert set(work.tokens) == {"LLM forward"}
    assert set(work.peak) == set(work.seconds[0])
    assert rounds.trace.stat().st_size > 0


def test_what_stops_in_the_middle_leaves_nobody_observing():
    with stepping(Rounds(Work("gallery", 1), built_encoder(), CPU, rounds=1)) as steps:
        for _ in range(WARM_UP + 1):
            next(steps)
        assert stage("a") is not stage("b")
    assert stage("a") is stage("b")
