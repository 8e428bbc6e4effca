"""The command: what its tables show at a terminal's width, which figures it draws, and what it refuses beforehand."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from hwmodel.config import load_config
from hwmodel.errors import CompileError
from spikec.commands.reproduce import VALUE_WIDTH
from spikec.reproduce.collect import collect_rows
from spikec.reproduce.facts import Row
from spikec.reproduce.figures import check_figures, draw_figures
from tests.spikec.command import refusal, result, spikec

ROOT = Path(__file__).parents[3]
PROGRAM = "import sys; sys.argv[0] = 'spikec'; from spikec.cli import main; main()"
CONFIG = load_config("h2learn")


@cache
def rows() -> tuple[Row, ...]:
    return collect_rows(CONFIG, simulated=False)


def printed(rows_: tuple[Row, ...], columns: int, monkeypatch: pytest.MonkeyPatch, *item: str) -> list[str]:
    """What the command prints of such rows."""
    monkeypatch.setattr("spikec.commands.reproduce.collect_rows", lambda *_, **__: rows_)
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = spikec("reproduce", *item)
    assert outcome.code == 0, outcome.err
    return outcome.out.splitlines()


@pytest.mark.parametrize("columns", [80, 120])
def test_no_name_ratio_kind_or_note_is_folded(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a row that begins with the whole name and ends with kind and note, below the heading of its group."""
    lines = printed(rows(), columns, monkeypatch)
    assert max(map(len, lines)) <= columns
    groups = dict.fromkeys(row.item.rsplit(".", 1)[0] for row in rows())
    notes = {text: number for number, text in enumerate(dict.fromkeys(row.assumption for row in rows()), 1)}
    for group in groups:
        start = lines.index(group)
        assert lines[start + 1].split()[:3] == ["item", "published", "ours"]
        table = lines[start + 2 : lines.index("", start)]
        starts = [line.rstrip() for line in table if not line.startswith(" ")]
        members = [row for row in rows() if row.item.rsplit(".", 1)[0] == group]
        for line, row in zip(starts, members, strict=True):
            ratio = "" if row.ratio is None else rf" {row.ratio:.3f}"
            name = re.escape(row.item.rsplit(".", 1)[1])
            assert re.fullmatch(rf"{name} .*{ratio} +{row.kind} +\[{notes[row.assumption]}\]", line), line


def test_a_variant_stands_below_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(rows(), 80, monkeypatch)
    texts = [row.variant for row in rows() if row.variant]
    whole = " ".join(line.strip() for line in lines)
    assert texts
    for text in texts:
        first = text.split()[0]
        assert any(line.startswith(f"  {first}") for line in lines), text
    assert "speedup_low 5.74" in re.sub(" +", " ", whole)


def test_small_seconds_and_joules_have_units_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 3.7 prints 115 us and 333 uJ, and 6.11 ms and 30 mJ, which stay as they are; JSON keeps s and J."""
    members = tuple(row for row in rows() if row.item.startswith("table-3.7."))
    words = {line.split()[0]: line.split() for line in printed(members, 80, monkeypatch, "table-3.7") if line}
    assert (words["loihi_net_latency"][1], words["loihi_net_latency"][3]) == ("115", "us")
    assert (words["loihi_net_energy"][1], words["loihi_net_energy"][3]) == ("333", "uJ")
    assert (words["fpga_latency"][1], words["fpga_latency"][3]) == ("0.00611", "s")
    assert (words["fpga_energy"][1], words["fpga_energy"][3]) == ("0.03", "J")
    ours = {row.item: row.ours for row in members}["table-3.7.loihi_net_latency"]
    assert isinstance(ours, float)
    assert words["loihi_net_latency"][2] == f"{1e6 * ours:.4g}"
    (latency,) = result("reproduce", "table-3.7.loihi_net_latency")["rows"]
    assert (latency["published"], latency["unit"]) == (0.000115, "s")


def test_long_texts_break_behind_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    members = tuple(row for row in rows() if row.item == "table-3.4.imagenet")
    lines = printed(members, 80, monkeypatch, "table-3.4.imagenet")
    start = next(index for index, line in enumerate(lines) if line.startswith("imagenet"))
    table = [line.removeprefix("imagenet").split() for line in lines[start : lines.index("", start)]]
    assert all(len(words[0]) <= VALUE_WIDTH for words in table)
    assert "".join(words[0] for words in table) == members[0].published


def test_no_figure_belongs_to_a_table(workplace: Path) -> None:
    message = refusal("reproduce", "table-3.6", "--figures", "figures")
    assert message.startswith("table-3.6: error: no figure belongs to it\n  hint: figures: figure-3.10, ")
    assert refusal("reproduce", "none", "--figures", "figures").startswith("none: error: is no published item")
    assert [path.name for path in workplace.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/proc/x", "No such file"),
        ("/proc", "No such file"),
        ("file", "File exists"),
        ("file/a/b", "Not a directory"),
        ("link", "File exists"),
        ("a/" + 300 * "x", "File name too long"),
    ],
)
def test_a_folder_is_checked_before_anything_is_calculated(
    folder: str, reason: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    monkeypatch.delattr("spikec.commands.reproduce.collect_rows")
    message = refusal("reproduce", "figure-3.11", "--figures", folder)
    assert message.startswith(f"{folder}: error: cannot write into it: {reason}")
    assert sorted(path.name for path in workplace.iterdir()) == ["file", "link", "out"]


def test_checking_leaves_folders_as_they_were(workplace: Path) -> None:
    assert check_figures("", Path("a/b")) == ""
    assert check_figures("figure-3.12.speedup", Path("out")) == "figure-3.12"
    assert list(workplace.rglob("*")) == [workplace / "out"]


def test_a_number_of_a_figure_draws_all_of_it(workplace: Path) -> None:
    drawn = []
    for item in ("figure-3.11", "figure-3.11.forward_area_saving"):
        done = spikec("reproduce", item, "--figures", Path("out") / item)
        assert done.code == 0, done.err
        assert done.err == f"drawn: out/{item}/figure-3.11.svg\n"
        drawn.append(Path("out", item, "figure-3.11.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert "weight_update_area_saving" not in done.out


def limited_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_full_disk_leaves_no_new_folder(workplace: Path) -> None:
    """The figure has more than the 4 KiB that a file may have here."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, "reproduce", "figure-3.11", "--figures", "a/b"],
        preexec_fn=limited_files,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (2, "a/b/figure-3.11.svg: error: cannot be written: File too large\n")
    assert list(workplace.rglob("*")) == [workplace / "out"]


def test_what_was_drawn_before_a_failure_goes_with_its_new_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two figures, the second of which does not fit; a folder that was there keeps the first."""
    members = tuple(row for row in rows() if row.item.startswith(("figure-3.11", "figure-3.12")))
    whole = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if list(path.parent.glob("*.svg")):
            raise OSError(28, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    for folder in ("new/folder", "out"):
        with pytest.raises(CompileError, match=r"figure-3\.12\.svg: error: cannot be written: No space left"):
            draw_figures(CONFIG, members, Path(folder))
    assert sorted(workplace.rglob("*")) == [workplace / "out", workplace / "out" / "figure-3.11.svg"]
