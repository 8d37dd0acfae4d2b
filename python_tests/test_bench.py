"""The benchmark's parts: gate, interleaved times, records, comparison, report, and a run from end to end on tiny shapes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("bench", reason="bench/ is only in a checkout")

from bench import __main__ as command
from bench import busy, compare, draw, gate, kernels, measure, memory, peers, plots, profile, records, report, roofline, table
from bench.checkout import ROOT
from bench.contenders import Case, Contender, Prepared, Unusable
from bench.suites import SUITES, block, decode, mlstm, slstm
from bench.timing import Timing, interleaved, ratio

CPU = torch.device("cpu")


def linear(factor: float):
    """A contender that computes y = 2 x for factor 2, forward and backward."""

    def build(shape, device, dtype):
        x = torch.arange(1.0, 1 + shape["S"], dtype=dtype).requires_grad_()
        return Prepared(lambda: factor * x, {"x": x})

    return build


def case(*contenders: Contender, **options) -> Case:
    return Case("toy", "cell", {"B": 1, "S": 8}, {"B": 1, "S": 4}, contenders, {"exact": linear(2.0)}, **options)


def missing(*_) -> Prepared:
    raise Unusable("nothing is not importable: no module")


def failing(*_) -> Prepared:
    raise ZeroDivisionError("division\nby zero")


def test_gate_lets_right_results_through_and_stops_wrong_ones():
    right, wrong = Contender("right", linear(2.0)), Contender("wrong", linear(2.001), against="right")
    outcome = measure.measure(case(right, wrong), CPU, seconds=0.01)
    assert [record.contender for record in outcome.records] == ["right"]
    assert outcome.red == ["wrong"]
    assert "RED GATE" in table.cases(outcome)


def test_gate_sees_a_wrong_gradient_and_a_nan():
    def wrong_gradient(shape, device, dtype):
        x = torch.arange(1.0, 1 + shape["S"], dtype=dtype).requires_grad_()
        return Prepared(lambda: 2 * x + (x - x.detach()), {"x": x})

    for build in (wrong_gradient, linear(float("nan"))):
        assert not gate.run_gate(case(), Contender("wrong", build), CPU, {}).green


def test_a_roofline_that_fails_costs_no_time_and_is_shown(monkeypatch):
    monkeypatch.setattr(roofline, "of", failing)
    outcome = measure.measure(case(Contender("right", linear(2.0))), CPU, seconds=0.01)
    assert [record.contender for record in outcome.records] == ["right"]
    assert "roofline of right: failed: ZeroDivisionError: division by zero" in table.cases(outcome)


def test_a_contender_that_cannot_run_costs_only_its_own_line():
    contenders = Contender("right", linear(2.0)), Contender("missing", missing), Contender("failing", failing)
    outcome = measure.measure(case(*contenders, Contender("long", linear(2.0), limits={"S": 4})), CPU, seconds=0.01)
    assert [record.contender for record in outcome.records] == ["right"]
    assert outcome.left_out == {
        "missing": "nothing is not importable: no module",
        "failing": "failed: ZeroDivisionError: division by zero",
        "long": "slow: measured only for S <= 4",
    }
    assert outcome.red == []


def test_timing_interleaves_gives_slow_calls_fewer_runs_and_warms_quick_ones():
    order = []

    def clock(call, repeats):
        call()
        return {"a": 1.0, "b": 100.0, "c": 60.0}[order[-1]]

    times = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, clock, seconds=0.66, most=5)
    assert (times["a"].runs, times["b"].runs, times["c"].runs) == (5, 2, 3)
    # a is repeated and first made again; a and c are warm, b takes so long that it does not matter
    estimates, rounds = ["a", "a", "b", "c"], [["a", "a", "b", "c", "c"]] * 2 + [["a", "a", "c", "c"]] + [["a", "a"]] * 2
    assert order == [*estimates, *(name for names in rounds for name in names)]
    assert ratio(times["b"], times["a"]) == 100.0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_freed_memory_stays_in_the_process():
    script = """
import re, torch
from bench.timing import keep_freed_memory
keep_freed_memory()
block = torch.empty(24 << 20, dtype=torch.uint8)  # of the heap; a map of its own goes back to the system with the block
first, last = re.search(r"(\\w+)-(\\w+) .*\\[heap\\]", open("/proc/self/maps").read()).groups()
print(int(first, 16) <= block.data_ptr() < int(last, 16))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert run.stdout.strip() == "True"


def test_ratio_is_of_the_same_rounds():
    assert ratio(Timing((2.0, 40.0, 6.0)), Timing((1.0, 20.0, 3.0, 100.0))) == 2.0


def record(**changes) -> records.Record:
    environment = {"processor": "P", "isa": "avx2", "threads": 1, "cores": 2, "load": 0.1, "torch": "2", "commit": "abc",
                   "date": "today", "peers": {"xlstm": "1"}}  # fmt: skip
    default = records.Record(
        "toy", "cell", "cell B1 S8 float32", {"B": 1, "S": 8}, "float32", "forward", "ours", "cpu", "time", 2.0, 1.9, 2.2, 5, 8,
        {"verdict": "agrees", "errors": {"output": 1e-7}, "tolerance": 1e-4, "shape": {"S": 4}}, {}, environment,
    )  # fmt: skip
    return replace(default, **changes)


def test_records_are_read_back_and_replaced_by_newer_ones(tmp_path):
    path = tmp_path / records.FILE
    records.save(path, [record(), record(contender="peer")])
    records.save(path, [record(median=3.0)])
    assert records.load(path) == [record(median=3.0), record(contender="peer")]


@pytest.mark.parametrize("content", ["{}\n", "no json\n", '["format"]\n', json.dumps({"format": records.FORMAT}) + "\n", "\xff"])
def test_a_file_that_is_not_ours_is_named(tmp_path, content, capsys):
    path = tmp_path / "old.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(records.NotOurResults, match=r"old\.jsonl"):
        records.load(path)
    assert command.main(["decode", "--compare", str(path)]) == 2
    assert "--compare" in capsys.readouterr().err


def test_compare_shows_what_got_slower_and_not_what_stayed_within_its_spread():
    old = [record(contender=name) for name in ("slower", "noisy", "faster")]
    new = [
        record(contender="slower", median=3.0, minimum=2.9),
        record(contender="noisy", median=3.0, minimum=1.8),
        record(contender="faster", median=1.0, minimum=0.9),
    ]
    lines = compare.report(old, new).splitlines()
    assert len(lines) == 2 and "SLOWER 1.50x" in lines[0] and "slower, time" in lines[0]
    assert lines[1].startswith("compare: 1 of 3")
    assert "hold no measurement" in compare.report(old, [record(case="another")])


def test_no_line_is_drawn_through_shapes_that_differ_in_more_than_their_length(tmp_path):
    shapes = [{"B": 1, "S": 32, "NH": 4}, {"B": 8, "S": 32, "NH": 4}, {"B": 8, "S": 64, "NH": 2}]
    found = [record(group="shapes", case=f"shape {shape}", shape=shape) for shape in shapes]
    assert plots.draw(found, tmp_path) == []


def test_plots_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    least = {"flops": 1e6, "flops/s": 1e12, "bytes": 1e6, "bytes/s": 1e10}
    found = [record(shape={"B": 1, "S": S}, case=f"S{S}", ratios={"ours": 2.0}, roofline=least) for S in (8, 16)]
    drawn = plots.draw(found, tmp_path)
    assert sorted(path.name for path in drawn) == ["ratios.png", "roofline.png", "toy-cell.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_roofline_is_the_longer_of_arithmetic_and_memory():
    least = {"flops": 1e9, "flops/s": 1e12, "bytes": 1e6, "bytes/s": 1e10}  # 1 ms and 0.1 ms
    assert roofline.share(least, 4.0) == pytest.approx(0.25)
    assert roofline.share({**least, "bytes": 2e7}, 4.0) == pytest.approx(0.5)


def test_roofline_counts_the_recurrence_and_every_tensor_once(monkeypatch):
    monkeypatch.setattr(roofline, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 1 << 16})
    roofline.rates.cache_clear()
    B, S, NH, DH = 2, 8, 2, 16
    case = next(case for case in SUITES["slstm"](torch.device("cpu"), True) if case.group == "cell")
    ours = case.contenders[0].build({"B": B, "S": S, "NH": NH, "DH": DH}, torch.device("cpu"), torch.float32)
    found = roofline.of(ours, True, "cpu", torch.float32)
    roofline.rates.cache_clear()
    assert found["flops"] == 3 * 2 * B * S * 4 * NH * DH * DH  # R h, R^T dg, dg h^T
    operands, h = 4 * B * S * NH * DH + 4 * NH * DH * DH + 4 * NH * DH, B * S * NH * DH
    assert found["bytes"] == 4 * 3 * (operands + h)
    assert found["flops/s"] > 0 and found["bytes/s"] > 0
    assert all(x.grad is None for x in ours.leaves.values())


def test_peers_that_are_missing_say_why():
    with pytest.raises(Unusable, match="no_such_peer is not importable: ModuleNotFoundError"):
        peers.load("no_such_peer")
    assert len(peers.report()) == len(peers.PEERS)


def small(one: Case) -> Case:
    """The same case at its gate's shape."""
    return replace(one, shape=one.gate_shape)


@pytest.mark.parametrize("suite", SUITES)
def test_suite_on_the_cpu_has_no_red_gate_and_no_failure(suite):
    first = SUITES[suite](CPU, True)[0]
    outcome = measure.measure(small(first), CPU, seconds=0.01)
    assert outcome.red == []
    failures = {name: reason for name, reason in outcome.left_out.items() if "not importable" not in reason}
    assert failures == {}
    assert outcome.records and all(one.gate["verdict"] != "disagrees" for one in outcome.records)


def test_layers_in_place_of_nn_lstm_are_timed():
    outcome = measure.measure(small(SUITES["slstm"](CPU, True)[1]), CPU, seconds=0.01)
    assert [one.contender for one in outcome.records] == ["xlstm_cuda.sLSTM", "torch.nn.LSTM"]
    assert outcome.records[1].ratios.keys() == {"xlstm_cuda.sLSTM"}


@pytest.mark.parametrize("suite", [block, decode, mlstm, slstm])
def test_quick_cases_are_fewer(suite):
    for device in (CPU, torch.device("cuda")):
        assert len(suite.cases(device, True)) < len(suite.cases(device, False))


def test_state_of_the_model_does_not_grow_and_the_transformers_does():
    sizes = {
        build: [build({"B": 1, "S": S}, CPU, torch.float32).state_bytes for S in (8, 64)]
        for build in (decode.ours(), decode.transformer)
    }
    (ours_short, ours_long), (short, long) = sizes.values()
    assert ours_short == ours_long and long > 4 * short


@pytest.mark.skipif(not memory.RESET.exists(), reason="peak memory is read from Linux' /proc")
def test_memory_of_blocks_is_measured_in_a_process_of_its_own():
    cases = block.cases(CPU, True)[:2]
    peaks = memory.peaks_cpu("sLSTM block", cases, quick=True)
    shortest, longer = (peaks[one.name] for one in cases)
    assert 0 < shortest < longer < 100


def test_command_prints_a_table_and_writes_records_and_plots(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SUITES, "decode", lambda device, quick: [small(decode.cases(device, True)[0])])
    assert command.main(["decode", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "xlstm_cuda" in out and "tokens/s" in out and "state" in out and "x xlstm_cuda" in out
    found = records.load(tmp_path / records.FILE)
    assert {one.metric for one in found} == {"time", "state"}
    assert all(one.environment["commit"] for one in found)


def test_command_stops_at_its_budget(tmp_path, capsys):
    assert command.main(["decode", "--quick", "--device", "cpu", "--out", str(tmp_path), "--budget", "-1"]) == 0
    assert "4 of 4 cases were not started" in capsys.readouterr().out


@pytest.mark.skipif(not report.RESULTS.exists(), reason="bench/results is only in a checkout")
def test_the_profile_sees_native_calls_under_their_labels():
    content = torch.zeros(4096, dtype=torch.uint8)
    corpus = profile.Corpus.of_bytes(content, content)
    run = profile.Training(profile.Settings(batch_size=1, context_length=8), corpus, profile.Device(CPU))
    found = profile.shares(run.train_step, 1)
    assert found.recurrences > 0 and found.rest[profile.PASSES] > 0
    model, token = decode.default_model(CPU, torch.float32), decode.tokens(1, 1, CPU)
    with torch.inference_mode():
        assert profile.shares(lambda: model.step(token), 1).rest[profile.STEP] > 0


@pytest.mark.parametrize("S,D", [(1, 16), (64, 64), (100, 48), (256, 64), (300, 256)])
def test_the_products_of_a_kernel_are_counted_as_the_chunkwise_form_needs_them(S, D):
    def counted(L):
        chunks = [range(start, min(start + L, S)) for start in range(0, S, L)]
        pairs = sum(1 for chunk in chunks for t in chunk for j in chunk if j <= t)
        read, written = sum(map(len, chunks[1:])), sum(map(len, chunks[:-1]))
        state = D * (D + 1)
        return {"forward": 2 * D * pairs + state * (read + written), "backward": 5 * D * pairs + state * (2 * read + 2 * written)}

    found = kernels.multiply_adds(S, D)
    assert found in [counted(L) for L in (32, 64, 128, 256)]
    assert all(sum(found.values()) <= sum(counted(L).values()) for L in (32, 64, 128, 256))


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="the FMA peak needs a C++ compiler")
def test_kernels_alone_are_a_part_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "SHAPES", ((2, 16, 2, 16),))
    threads = torch.get_num_threads()
    try:
        kernels.main(tmp_path, quick=True)
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / kernels.FILE).read_text())
    (one,) = found["kernels"]
    assert found["peak"] > 1e9 and one["second thread"] > 0 and all(ms > 0 for both in one["ms"].values() for ms in both.values())
    page = "\n".join(report.kernel_lines(found))
    assert "| B2 S16 NH2 D16 | " in page and page.count("%") == 3
    assert all(line in page for line in capsys.readouterr().out.splitlines())


def test_recorded_kernels_write_the_results_of_the_call():
    call = mlstm.ours("cpu")(dict(B=1, S=80, NH=2, DHQK=16, DHHV=16), CPU, torch.float32)
    native = dict(kernels.mlstm_cpu._FORWARD)
    with kernels.recorded() as calls:
        h = call.forward()
        dh = torch.ones_like(h)
        gradients = torch.autograd.grad(h, list(call.leaves.values()), dh, retain_graph=True)
    expected = [x.detach().clone() for x in (h, *gradients)]
    with torch.no_grad():
        for x in (h, *gradients):
            x.zero_()
    calls["forward"]()
    calls["backward"]()
    assert all(x.equal(value) for x, value in zip((h, *gradients), expected))
    assert calls["backward"].keywords["borders"] and kernels.mlstm_cpu._FORWARD == native


def test_training_beside_busy_processes_is_a_part_of_the_page(tmp_path, monkeypatch):
    seconds = iter((2.0, 1.9, 4.0))
    monkeypatch.setattr(busy, "train", lambda **_: next(seconds))
    busy.main(tmp_path, quick=True)
    page = "\n".join(report.busy_lines(json.loads((tmp_path / busy.FILE).read_text())))
    assert "alone: 2.00 s" in page and "4.00 s, 2.00 of the time alone" in page


def test_performance_page_is_what_the_results_say():
    assert report.PAGE.read_text() == report.render(), "refresh with `python -m bench.report`"


def test_performance_page_says_where_there_is_no_gpu_result(tmp_path):
    records.save(tmp_path / "somewhere" / records.FILE, [record()])
    records.save(tmp_path / "local" / records.FILE, [record(contender="of this machine")])
    page = report.render(tmp_path)
    assert "There is no result yet" in page and "| ours | 2 (1.9 to 2.2, 5) |" in page and "of this machine" not in page
    gpu = {**record().environment, "gpu": {"name": "H100", "driver_version": "580"}}
    records.save(tmp_path / "gpu" / records.FILE, [record(device="cuda", environment=gpu)])
    page = report.render(tmp_path)
    assert "There is no result yet" not in page and "## H100" in page


def test_operands_of_a_gate_are_the_same_everywhere_and_large_ones_are_drawn_where_they_are_used():
    cuda = torch.device("cuda")
    cases = [case for make in SUITES.values() for case in make(cuda, False)]
    for case_ in cases:  # the largest operand of any suite: B S 4 NH DH, or R
        sizes = case_.gate_shape
        width = max(sizes.get("D", 0), 4 * sizes.get("NH", 1) * max(sizes.get("DH", 0), sizes.get("DHHV", 0)))
        assert not draw.drawn_on_device((sizes["B"], sizes["S"], width), cuda), case_.name
        assert not draw.drawn_on_device((4, sizes.get("NH", 1), sizes.get("DH", 0), sizes.get("DH", 0)), cuda), case_.name
    large = next(case_ for case_ in cases if case_.suite == "mlstm").shape
    size = large["B"], large["S"], large["NH"], large["DHHV"]
    assert draw.drawn_on_device(size, cuda) and not draw.drawn_on_device(size, CPU)
    assert torch.equal(draw.Normal(CPU)(3, 4), draw.Normal(CPU)(3, 4))
