"""The paper's tables: every cell against the paper's text, and what `mcn table` shows in four formats."""

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcn._table_formats import FORMATS
from mcn.cli import main
from mcn.errors import MCNError
from mcn.results import DataUsed, Record, save_record
from mcn.tables import NOT_MEASURED, Cell, against_untrained, folded, paper_table, render

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT.parent / "shared" / "paper" / "mcn-iccv2021.md"
NUMBERS = range(1, 11)


def printed_tables() -> dict[int, list[list[str]]]:
    """Tables of the paper's text: tab-separated lines that end at a line "Table N. ..."."""
    found: dict[int, list[list[str]]] = {}
    block: list[list[str]] = []
    for line in PAPER.read_text(encoding="utf-8").splitlines():
        caption = re.match(r"Table (\d+)\. ", line)
        if "\t" in line:
            block.append(line.split("\t"))
        elif caption:
            found[int(caption[1])], block = block, []
    assert not block
    return found


def as_printed(cell: Cell) -> str:
    """A cell of ours in the writing of the paper's text, where a tick is a 1."""
    if cell is None:
        return ""
    if cell is True:
        return "1"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def plain(cell: str) -> str:
    """A cell of the paper's text without its mathematics' markup; a dash is an empty cell."""
    return {"-": ""}.get(cell, re.sub(r"\$\\alpha = ([\d.]+)\$", r"α = \1", cell))


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not beside the repository")
@pytest.mark.parametrize("number", NUMBERS)
def test_every_cell_is_the_papers(number: int) -> None:
    printed = printed_tables()
    assert sorted(printed) == list(NUMBERS)
    header, *rows = printed[number]
    table = paper_table(number)
    width = len(table.columns)
    assert all(not any(row[width:]) for row in printed[number])  # Table 8's header has an empty cell more
    assert tuple(header[:width]) == table.columns
    ours = [[as_printed(cell) for cell in row] for row in table.rows.values()]
    assert ours == [[plain(cell) for cell in row[:width]] for row in rows]


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not beside the repository")
def test_the_comparison_can_fail() -> None:
    rows = printed_tables()[9]
    assert len(rows) == 12
    assert rows[9] == ["CoCLR [18]", "53.3", "69.4", "76.6", "82.0", "-"]
    assert as_printed(paper_table(9).rows["coclr"][4]) == "82.0"  # not 82
    assert as_printed(paper_table(7).rows["mars"][2]) == "112"  # not 112.0
    assert as_printed(paper_table(7).rows["mars"][2]) != as_printed(112.0)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_table_is_whole(number: int) -> None:
    table = paper_table(number)
    source = yaml.safe_load((ROOT / "mcn" / "paper_tables.yaml").read_text(encoding="utf-8"))
    assert all(len(row) == len(table.columns) for row in table.rows.values())
    assert set(table.results) <= set(table.columns)
    assert set(table.results.values()) <= set(source["metrics"])
    results = [cell for row in table.rows.values() for cell in row[-len(table.results) :]]
    assert all(cell is None or (isinstance(cell, float) and 0 < cell < 100) for cell in results)
    assert set(table.columns[-len(table.results) :]) == set(table.results)
    labels = [table.label(row) for row in table.rows]
    assert len(set(labels)) == len(labels)
    assert all(table.paper) and all(table.here)  # noqa: PT018 - both say something
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", row) for row in table.rows)  # what a record may give


def test_row_names_are_unique_and_nothing_is_overwritten_by_a_twin() -> None:
    """YAML lets the second of two equal names win without a word."""
    text = (ROOT / "mcn" / "paper_tables.yaml").read_text(encoding="utf-8")
    for block in re.split(r"(?m)^  \d+:$", text)[1:]:
        names = re.findall(r"(?m)^      ([\w.-]+): \[", block)
        assert names
        assert len(set(names)) == len(names)


def test_rows_of_the_appendix_that_are_cited_exist() -> None:
    appendix = (ROOT / "book" / "protocol.md").read_text(encoding="utf-8")
    known = set(map(int, re.findall(r"\{#row-(\d+)\}", appendix)))
    text = (ROOT / "mcn" / "paper_tables.yaml").read_text(encoding="utf-8")
    cited = set(map(int, re.findall(r"\(row\s+(\d+)\)", text)))
    assert {49, 50, 51, 41, 43} <= cited <= known


def test_the_oddities_are_in_the_numbers_that_the_notes_speak_of() -> None:
    def cell(number: int, row: str, column: str) -> Any:
        table = paper_table(number)
        return table.rows[row][table.columns.index(column)]

    ours = ("mcn-r2plus1d_18", "mcn-r3d_18")
    pairs = [(cell(2, row, c), cell(6, row, c)) for row in ours for c in ("UCF101(%)", "HMDB51(%)")]
    assert [pair for pair in pairs if pair[0] != pair[1]] == [(41.2, 42.2)]
    assert "41.2 here and 42.2" in paper_table(2).notes[0]
    assert "42.2 here and 41.2" in paper_table(6).notes[0]
    assert cell(7, "jigsaw", "Backbone") == "UCF101"
    assert cell(9, "coclr", "top1") > cell(9, "mcn-r2plus1d_18", "top1")
    for top in ("top5", "top10", "top20"):
        assert cell(9, "coclr", top) < cell(9, "mcn-r2plus1d_18", top)
    assert [cell(7, "pp", c) for c in ("UCF101", "HMDB51")] == [
        cell(8, "pp", c) for c in ("UCF101", "HMDB51")
    ]
    gains = [cell(4, f"mcn-{n}", "UCF101(%)") - cell(4, f"baseline-{n}", "UCF101(%)") for n in (16, 32, 64)]
    assert gains == pytest.approx([6.7, 7.5, 6.1])
    assert cell(4, "mcn-32", "UCF101(%)") == cell(1, "mcn-r2plus1d_18", "UCF101(%)")
    assert cell(4, "baseline-32", "UCF101(%)") == cell(1, "baseline-r2plus1d_18", "UCF101(%)")
    for row in ours:
        assert cell(7, row, "HMDB51") == cell(1, row, "HMDB51(%)")


def test_the_data_file_is_installed_with_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    shipped = re.search(r"(?m)^\[tool\.setuptools\.package-data\]\nmcn = (.*)$", text)
    assert shipped
    assert '"paper_tables.yaml"' in shipped[1]


def test_labels_in_words() -> None:
    assert paper_table(1).label("mcn-s3d") == "Ours (+ MCN), S3D"
    assert paper_table(3).label("alpha-0.1") == "α = 0.1"
    assert paper_table(5).label("mcn") == "CL + BL + Meta Stages"
    assert paper_table(7).label("opn") == "OPN [28], VGG, 227 Resolution"
    assert paper_table(5).label("untrained") == "untrained (not in the paper)"


def record(row: str, seed: int, probe: float, **changes: Any) -> Record:
    return Record(
        **{
            "table": "5", "row": row, "setting": {"pretrain": {"lr": 0.01, "order": row, "seed": seed}},
            "seed": seed, "metrics": {"probe_top1": probe, "own_score": 1.0},
            "data": DataUsed("UCF101, 13 classes", 1, 1260, 503), "profile": "laptop",
            "protocol": "quick probe & <b>10</b> clips | rgb_1", "device": "NVIDIA H100 80GB HBM3",
            "versions": {}, "commit": "0123456789ab", "wall_seconds": 9.0, **changes,
        }
    )  # fmt: skip


RECORDS = [
    record("untrained", 0, 21.0, commit="89abcdef0123-dirty"),
    record("mcn", 0, 50.0),
    record("mcn", 1, 52.0, commit="fedcba987654"),
    record("mcn", 2, 54.0),
    record("mcn", 0, 77.7, setting={"pretrain": {"lr": 0.02, "order": "mcn", "redraw": False}}),
    record("contrast", 0, 41.0),
    record("contrast", 0, 33.3, device="x86_64"),
    record("mcn", 0, 0.0, table="1"),
    record("mcn", 3, 0.0, paper=True, profile="paper", metrics={"probe_top1": 9.0, "finetune_top1": 84.0}),
]


def test_what_all_numbers_of_a_block_were_made_with_stands_beside_them() -> None:
    sizes = {"backbone": "r3d_small", "frames": 8, "epochs": 12}
    tested = {"clips": 4}
    made = [
        record("mcn", 0, 50.0, setting={"pretrain": {**sizes, "lr": 0.01}, "probe": tested}),
        record("contrast", 0, 41.0, setting={"pretrain": {**sizes, "lr": 0.02}, "probe": tested}),
    ]
    shown = " ".join(render(5, "text", made).replace("┃", "").split())
    said = "With: network r3d_small, 8 frames, 12 epochs of pre-training, probe: 4 clips a video. Not the"
    assert said in shown  # and no learning rate, which differs


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_number_of_the_paper_is_shown_in_every_format(number: int, format: str) -> None:
    shown = render(number, format, [])
    assert NOT_MEASURED in shown
    for row in paper_table(number).rows.values():
        for cell in row:
            if isinstance(cell, float):
                assert f"{cell:.1f}" in shown
    assert ("✓" in shown or "checkmark" in shown) == (number == 5)
    assert shown.endswith("\n")


@pytest.mark.parametrize("number", NUMBERS)
def test_text_fits_100_columns(number: int) -> None:
    name = "a-row-beyond-the-paper-with-a-long-name"
    records = [
        record(name, seed, 1.0, commit=f"{seed}123456789ab-dirty", table=str(number)) for seed in range(3)
    ]
    for each in (records, []):
        lines = render(number, "text", each).splitlines()
        assert max(map(len, lines)) == 100  # the rule under the title
        assert not [line for line in lines if line != line.rstrip()]


def test_text_of_table_5_as_it_should_be_seen() -> None:
    shown = render(5, "text", RECORDS)
    top = """
The paper's numbers (Lin et al., ICCV 2021)

  As printed: top-1 accuracy in per cent of the test videos
  CL   BL   Meta Stages   UCF101(%)
  ──   ──   ───────────   ─────────
  ✓                            77.3
  ✓    ✓                       79.2
  ✓    ✓    ✓                  84.8
"""
    assert top in shown
    measured = """
┃ Measured here
┃ Data: UCF101, 13 classes, split 1, 1260 training and 503 test videos. Profile: laptop. Device:
┃ NVIDIA H100 80GB HBM3.
┃ Protocol: quick probe & <b>10</b> clips | rgb_1.
┃ Not the paper's protocol at full size: compare these with each other, not with the paper's.
┃
┃ Measured: linear probe, top-1, per cent; not the measure of the paper's table
┃ Row                                Seeds    Mean ± sd   95 % interval   Commit
┃ ────────────────────────────────   ─────   ──────────   ─────────────   ──────────────────────────
┃ contrast: CL                           1         41.0        one seed   0123456789ab
┃ mcn: CL + BL + Meta Stages             3   52.0 ± 2.0    47.0 to 57.0   0123456789ab, fedcba987654
┃ [pretrain.lr 0.01,
┃ pretrain.redraw not set]
┃ mcn: CL + BL + Meta Stages             1         77.7        one seed   0123456789ab
┃ [pretrain.lr 0.02,
┃ pretrain.redraw false]
┃ untrained (not in the paper)           1         21.0        one seed   89abcdef0123-dirty
┃
"""
    assert measured in shown  # 47.0 and 57.0: 52 ∓ 4.303 · 2 / √3


def test_what_is_measured_stands_apart_by_data_protocol_and_device() -> None:
    shown = render(5, "text", RECORDS)
    parts = shown.split("\n\n┃ Measured here\n")[1:]
    assert len(parts) == 3
    assert "The paper's protocol at full size" in parts[0]
    assert "Fine-tuned, top-1" not in parts[1]
    assert all("Not the paper's protocol at full size" in part for part in parts[1:])
    assert "Device: NVIDIA H100" in parts[1].replace("\n┃ ", " ")
    assert "Device: x86_64" in parts[2].replace("\n┃ ", " ")
    captions = re.findall(r"┃ (Measured: .*)", shown)
    assert captions[:2] == [  # the table's own measure first
        "Measured: fine-tuned, top-1, per cent",
        "Measured: linear probe, top-1, per cent; not the measure of the paper's table",
    ]
    assert "Measured: own score, per cent; not the measure of the paper's table" in captions
    paper_part = shown[: shown.index("┃")]
    assert "50.0" not in paper_part
    assert "77.3" not in shown[shown.index("┃") :]
    assert NOT_MEASURED not in shown
    assert NOT_MEASURED in render(4, "text", RECORDS)


class Tables(HTMLParser):
    """Checks nesting; collects captions, headers and rows of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[dict[str, Any]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "table":
            self.tables.append({"caption": "", "scopes": [], "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
            self.tables[-1]["scopes"].append([])
        elif tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append("")
            self.tables[-1]["scopes"][-1].append(dict(attrs).get("scope"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif "th" in self.open or "td" in self.open:
            self.tables[-1]["rows"][-1][-1] += data


def test_html_is_well_formed_and_tells_a_screen_reader_what_is_what() -> None:
    shown = render(5, "html", RECORDS)
    tables = Tables(shown).tables
    assert len(tables) == 1 + 2 + 2 + 2
    for table in tables:
        assert table["caption"]
        assert set(table["scopes"][0]) == {"col"}
        assert all(scopes[0] == "row" and set(scopes[1:]) == {None} for scopes in table["scopes"][1:])
    assert tables[0]["rows"][1:] == [["✓", "", "", "77.3"], ["✓", "✓", "", "79.2"], ["✓", "✓", "✓", "84.8"]]
    assert "quick probe &amp; &lt;b&gt;10&lt;/b&gt; clips | rgb_1" in shown
    assert shown.count('class="mcn-measured"') == 3


def test_markdown_tables_are_rectangular_and_escaped() -> None:
    shown = render(5, "markdown", RECORDS)
    blocks = re.findall(r"(?:^(?:> )?\|.*\n)+", shown, flags=re.M)
    assert len(blocks) == 7
    for block in blocks:
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(bars)) == 1
        assert re.match(r"(> )?\|( :---| ---:|\s\|)+ \|", block.splitlines()[1])
    assert r"quick probe & \<b>10\</b> clips \| rgb_1" in shown
    quoted = shown[shown.index("> **Measured") : shown.index("**The paper's protocol")]
    assert all(line.startswith(">") or not line for line in quoted.splitlines())
    assert r"Jigsaw\[34\]" in render(7, "markdown", [])


def test_latex_is_balanced_and_escaped() -> None:
    for number in NUMBERS:
        shown = render(number, "latex", [*RECORDS, record("x_1", 0, 5.0, table=str(number))])
        body = shown[shown.index("\n") :]
        bare = re.sub(r"\\[&%$#_{}\\]", "", body)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search(r"[#_]", bare.replace("amssymb", ""))
        begun, ended = re.findall(r"\\begin\{(\w+)\}", shown), re.findall(r"\\end\{(\w+)\}", shown)
        assert sorted(begun) == sorted(ended)
        assert all(ord(character) < 0x250 for character in body), set(body) - set(map(chr, range(0x250)))
        for table in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end", shown, flags=re.S):
            rows = [line for line in table[1].splitlines() if "\\\\" in line]
            assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(table[0])}
    assert r"quick probe \& \textless{}b\textgreater{}10" in render(5, "latex", RECORDS)


def test_bad_requests_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="unknown format 'pdf': one of text, markdown, html, latex"):
        render(5, "pdf", [])
    for arguments, status, words in [
        (["11"], 1, "the paper has no table 11: give a number from 1 to 10"),
        (["0"], 1, "the paper has no table 0"),
        (["five"], 2, "five"),
        ([], 2, "number"),
        (["5", "--format", "pdf"], 2, "pdf"),
        (["5", "--results", str(tmp_path / "missing")], 1, "no such folder"),
    ]:
        assert main(["table", *arguments]) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert words in said.err
        assert said.err.count("\n") == 1


def test_the_command_reads_a_folder_of_records(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for each in RECORDS:
        save_record(each, tmp_path)
    for format in FORMATS:
        assert main(["table", "5", "--results", str(tmp_path), "--format", format]) == 0
        assert capsys.readouterr().out == render(5, format, RECORDS)
    assert main(["table", "5"]) == 0
    assert capsys.readouterr().out == render(5)


def test_lines_against_the_untrained_network_compare_only_what_belongs_together() -> None:
    lines = against_untrained(["probe_top1"], RECORDS[:4])
    assert [line.split() for line in (lines[0], lines[2], lines[4])] == [
        ["untrained", "21.0"], ["mcn", "52.0"], ["minus", "untrained", "+31.0"],
    ]  # fmt: skip
    assert len(lines) == 5
    assert "E = ?, 3 seeds; laptop, NVIDIA H100 80GB HBM3" in lines[3]
    elsewhere = [
        record("mcn", 0, 50.0, device="x86_64"),
        record("mcn", 0, 50.0, protocol="another"),
        record("mcn", 0, 50.0, setting={"pretrain": {"epochs": 7}}),
        record("mcn", 0, 50.0, table="1"),
    ]
    for other in elsewhere:
        assert "minus" not in "".join(against_untrained(["probe_top1"], [RECORDS[0], other]))
    two = [record("untrained", 0, 1.0, setting={"pretrain": {"lr": 1.0}}), *RECORDS[:2]]
    assert "minus" not in "".join(against_untrained(["probe_top1"], two))  # which of the two?
    held_out = record("mcn", 0, 50.0, data=DataUsed("x", 1, 9, 9, "held-out training videos"))
    lacking = record("mcn", 0, 50.0, metrics={"own_score": 1.0})
    assert against_untrained(["probe_top1"], [held_out, lacking]) == []


def test_folded_tables_say_every_rule_once_and_leave_nothing_out() -> None:
    shown = folded(NUMBERS, RECORDS)
    rules: dict[str, list[int]] = {}
    for number in NUMBERS:
        table = paper_table(number)
        assert f"<summary>Table {number}. {escape(table.caption)}</summary>" in shown
        for rule in (*table.paper, *table.here):
            rules.setdefault(rule, []).append(number)
        assert all(shown.count(f"<li>{escape(note)}</li>") >= 1 for note in table.notes)
    for rule, numbers in rules.items():
        about = f"Table{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        assert shown.count(f"<li>{escape(rule)} <em>({about})</em></li>") == 1
    assert shown.count("<details>") == shown.count("</details>") == len(NUMBERS) + 2
    assert ">77.7</td>" in shown  # what was measured stays with its table
