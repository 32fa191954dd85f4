import dataclasses
import json
import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patterns import NUMBERED, expand

from lxt_compose.coverage.report import CoverageReport
from lxt_compose.coverage.rows import Row, Status, fold

EPSILON = "Epsilon(epsilon=1e-06)"


def module(path, target="Linear", rule=EPSILON, key="Linear", calls=1, status=Status.RULED, **more):
    return Row("module", path, target, rule, key, calls, status, **more)


def op(path, target, status=Status.EXACT, rule="", key="", calls=1, **more):
    return Row("op", path, target, rule, key, calls, status, **more)


def foo(path, target="F.foo"):
    return op(path, target, Status.UNCOVERED)


def report(*rows, executed=True, **more):
    return CoverageReport(rows, executed=executed, **more)


def unfolded(lines):
    """(path, target) of every row that the lines stand for."""
    return Counter((path, target) for line in lines for path in expand(line.path) for target in line.targets)


def columns(text):
    """Columns of a terminal that a line takes."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def llama(layers, uncovered=False):
    """Rows like those of a Llama: 60 or more for a layer."""
    rows, linear = [op("model.embed_tokens", "embedding")], {"rule": "Epsilon(epsilon=0.0)"}
    default = {"status": Status.DEFAULT, "rule": "Epsilon(epsilon=0.0)"}
    movement = "view transpose contiguous getitem expand reshape to unsqueeze cat split flatten permute squeeze narrow"
    for layer in (f"model.layers.{i}" for i in range(layers)):
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = f"{layer}.{name}"
            rows.append(module(norm, "LlamaRMSNorm", "Norm()", "LlamaRMSNorm"))
            rows += [
                op(norm, t, Status.SHADOWED, note=f"inside {norm}") for t in ("pow", "mean", "add", "rsqrt", "mul")
            ]
        rows += [module(f"{layer}.self_attn.{name}_proj", **linear) for name in "qkvo"]
        rows += [op(f"{layer}.self_attn", name) for name in movement.split()]
        rows += [op(f"{layer}.self_attn.rotary_emb", name) for name in movement.split()]
        rows += [op(f"{layer}.self_attn", name, **default) for name in ("add", "neg", "sub", "sum")]
        rows.append(op(f"{layer}.self_attn", "mul", Status.DEFAULT, "Identity()"))
        rows.append(op(f"{layer}.self_attn", "scaled_dot_product_attention", Status.RULED, "Attention()", "torch.sdpa"))
        rows += [module(f"{layer}.mlp.{name}_proj", **linear) for name in ("gate", "up", "down")]
        rows.append(module(f"{layer}.mlp.act_fn", "SiLU", "Identity()", "SiLU"))
        rows.append(op(f"{layer}.mlp", "mul", Status.DEFAULT, "Uniform()"))
        rows.append(op(layer, "add", **default))
        rows += [foo(f"{layer}.mlp", "fused_swiglu"), foo(f"{layer}.mlp", "clamp_up")] if uncovered else []
    return [*rows, module("model.norm", "LlamaRMSNorm", "Norm()", "LlamaRMSNorm"), module("lm_head", **linear)]


# ---- folding -------------------------------------------------------------------------------------------------------


def test_layers_fold_into_one_line():
    (line,) = fold(module(f"layers.{i}.mlp.act_fn", "SiLU", calls=2) for i in range(32))
    assert (line.path, line.places, line.calls) == ("layers.{0..31}.mlp.act_fn", 32, 64)
    text = str(report(*(module(f"layers.{i}.mlp.act_fn", "SiLU", calls=2) for i in range(32))))
    assert re.search(r"^layers\.\{0\.\.31\}\.mlp\.act_fn +x32 +SiLU .* 64 +ruled$", text, re.MULTILINE)


def test_gaps_show():
    (line,) = fold(module(f"features.{i}", "Conv2d") for i in (7, 0, 5, 2, 6))
    assert line.path == "features.{0,2,5..7}"


def test_two_levels_fold_if_the_product_is_full():
    (line,) = fold(module(f"layers.{i}.experts.{j}.fc") for i in range(4) for j in range(8))
    assert (line.path, line.places) == ("layers.{0..3}.experts.{0..7}.fc", 32)


def test_a_hole_in_a_product_splits_its_layer_off():
    lines = fold(module(f"layers.{i}.experts.{j}.fc") for i in range(4) for j in range(8) if (i, j) != (2, 5))
    assert [(line.path, line.places) for line in lines] == [
        ("layers.{0,1,3}.experts.{0..7}.fc", 24),
        ("layers.2.experts.{0..4,6,7}.fc", 7),
    ]


def test_numbers_inside_a_name_fold_and_leading_zeros_stay():
    paths = [f"denseblock1.denselayer{i}.conv{j}" for i in (1, 2, 3) for j in (1, 2)]
    assert [line.path for line in fold(map(module, paths))] == ["denseblock1.denselayer{1..3}.conv{1,2}"]
    assert [line.path for line in fold(map(module, ["block.00", "block.01", "block.0"]))] == [
        "block.00",
        "block.01",
        "block.0",
    ]


def test_another_rule_in_every_second_layer_is_another_line():
    rows = [module(f"layers.{i}.attn", "Attention", "Stop()" if i % 2 else EPSILON, "Attention") for i in range(26)]
    lines = {line.path: line.rule for line in fold(rows)}
    assert lines == {"layers.{0..24..2}.attn": EPSILON, "layers.{1..25..2}.attn": "Stop()"}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "op"},
        {"target": "Bilinear"},
        {"rule": "Gamma(gamma=0.25)"},
        {"key": "'layers.1.*'"},
        {"status": Status.SHADOWED},
        {"note": "dropout is active"},
        {"aliases": ("decoder.1.fc",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_fold_only_if_all_else_is_the_same(change):
    assert len(fold([module("layers.0.fc"), module("layers.1.fc")])) == 1
    assert len(fold([module("layers.0.fc"), dataclasses.replace(module("layers.1.fc"), **change)])) == 2


def test_notes_and_aliases_fold_along():
    rows = [
        module(f"layers.{i}.fc", status=Status.SHADOWED, note=f"inside layers.{i}", aliases=(f"twin.{i}.fc",))
        for i in range(32)
    ]
    (line,) = fold(rows)
    assert (line.note, line.aliases) == ("inside layers.{0..31}", ("twin.{0..31}.fc",))
    assert "shadowed, inside layers.{0..31}, also twin.{0..31}.fc" in report(*rows).to_string(width=200)


def test_the_aliases_of_a_layer_that_is_used_twelve_times_fold():
    row = module("layers.0.fc", calls=12, aliases=tuple(f"layers.{i}.fc" for i in range(1, 12)))
    assert "ruled, also layers.{1..11}.fc" in str(report(row))
    assert report(row).rows[0].aliases[-1] == "layers.11.fc"


def test_ops_treated_alike_at_one_place_share_a_line():
    rows = [op(f"layers.{i}", name, calls=3) for i in range(4) for name in ("view", "transpose", "contiguous")]
    rows += [op(f"layers.{i}", name, Status.DEFAULT, "Epsilon()") for i in range(4) for name in ("add", "sub")]
    rows += [op(f"layers.{i}", "mul", Status.DEFAULT, "Uniform()") for i in range(4)]
    lines = [(line.path, line.targets, line.rule, line.calls, line.places) for line in fold(rows)]
    assert lines == [
        ("layers.{0..3}", ("view", "transpose", "contiguous"), "", 36, 4),
        ("layers.{0..3}", ("add", "sub"), "Epsilon()", 8, 4),
        ("layers.{0..3}", ("mul",), "Uniform()", 4, 4),
    ]


def test_ops_that_differ_in_place_or_note_and_uncovered_ops_keep_their_lines():
    assert len(fold([op("a", "view"), op("b", "cat")])) == 2
    assert len(fold([op("a", "view"), op("a", "dropout", note="dropout is active")])) == 2
    assert len(fold([foo("a"), foo("a", "F.bar")])) == 2


def test_lines_are_in_the_order_of_first_occurrence():
    rows = [module("stem"), *(module(f"layers.{i}.{name}") for i in range(3) for name in "ba"), module("head")]
    assert [line.path for line in fold(rows)] == ["stem", "layers.{0..2}.b", "layers.{0..2}.a", "head"]


ROWS = st.lists(
    st.builds(
        Row,
        kind=st.sampled_from(["module", "op"]),
        path=NUMBERED,
        target=st.sampled_from(["add", "view", "cat", "Linear"]),
        rule=st.sampled_from(["", EPSILON]),
        key=st.sampled_from(["", "'conv1'"]),
        calls=st.integers(0, 9),
        status=st.sampled_from(Status),
        aliases=st.lists(NUMBERED, max_size=2).map(tuple),
        note=st.sampled_from(["", "inside a.0", "inside a.1", "dropout is active"]),
    ),
    max_size=40,
)


@given(ROWS)
@settings(deadline=None)
def test_folded_lines_stand_for_exactly_the_rows(rows):
    lines = fold(rows)
    assert unfolded(lines) == Counter((row.path, row.target) for row in rows)
    assert sum(line.calls for line in lines) == sum(row.calls for row in rows)
    assert all(len(expand(line.path)) == line.places for line in lines)
    for status in Status:
        of_status = [line for line in lines if line.status is status]
        assert unfolded(of_status) == Counter((row.path, row.target) for row in rows if row.status is status)


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_points_in_three_indices_fold_exactly(points):
    lines = fold(module("a.{}.b.{}.c{}".format(*point)) for point in points)
    assert unfolded(lines) == Counter(("a.{}.b.{}.c{}".format(*point), "Linear") for point in points)


# ---- the printed form ----------------------------------------------------------------------------------------------


def test_uncovered_rows_come_first():
    text = str(report(module("a"), foo("layers.0"), module("b")))
    body = text.split("\n\n")[1].splitlines()[2:]
    assert [line.split()[-1] for line in body] == ["uncovered", "ruled", "ruled"]
    assert body[1].startswith("a ")


def test_summary_of_a_complete_report():
    rows = [module("a"), module("b"), op("a", "add", Status.DEFAULT), op("b", "add", Status.DEFAULT), op("a", "view")]
    rows += [
        module("c", status=Status.SHADOWED),
        op("c", "mul", Status.SHADOWED),
        module("d", status=Status.NOT_EXECUTED),
    ]
    assert str(report(*rows)).startswith("complete: 2 modules and 2 kinds of op, nothing uncovered\n\n")
    assert str(report(module("a"), op("a", "add"))).startswith("complete: 1 module and 1 kind of op, nothing uncovered")


def test_summary_names_what_is_uncovered():
    rows = [foo(f"layers.{i}.mlp") for i in range(32)] + [foo("", "bar"), module("stem", status=Status.UNCOVERED)]
    summary = "NOT complete: 3 uncovered: F.foo in layers.{0..31}.mlp (x32), bar in (model), Linear at stem"
    assert str(report(*rows)).splitlines()[0] == summary
    assert repr(report(*rows)) == f"<CoverageReport: {summary}>"


def test_summary_that_is_too_long_says_how_many_more():
    first = str(report(*(foo(f"block_{c}.attention", f"F.op_{c}") for c in "abcdefgh"))).splitlines()[0]
    shown = first.count("F.op_")
    assert 1 <= shown < 8
    assert first.startswith("NOT complete: 8 uncovered: F.op_a in block_a.attention, F.op_b in")
    assert first.endswith(f", +{8 - shown} more")


def test_before_any_forward():
    bound = report(module("fc", calls=0, status=Status.BOUND), executed=False)
    assert str(bound).startswith("no forward has run yet: modules that are bound\n\nwhere")
    assert "bound" in str(bound).splitlines()[-1]
    assert not bound.complete
    assert "\n" not in repr(bound)


def test_empty_reports():
    assert str(report(executed=False)) == "no forward has run yet: no module is bound"
    assert str(report(carried=False)) == "NOT complete: nothing carried relevance: does the input require grad?"
    assert "<table" not in report()._repr_html_()
    assert "|" not in report().to_markdown()
    assert report().to_dicts() == []


def test_what_stands_under_the_table():
    rows = [module("a"), *(module(f"encoder.{i}.fc", calls=0, status=Status.NOT_EXECUTED) for i in range(4))]
    full = report(*rows, unmatched=["nn.Conv3d", "torch.erf"], notes=["the model is in training mode"])
    table, under = str(full).split("\n\n")[1:]
    assert "encoder" not in table
    assert under.splitlines() == [
        "matched nothing: nn.Conv3d, torch.erf",
        "not executed: Linear at encoder.{0..3}.fc (x4)",
        "note: the model is in training mode",
    ]


def test_many_idle_modules_are_not_all_named_under_the_table():
    full = report(module("a"), *(module(f"router_{'x' * i}", status=Status.NOT_EXECUTED) for i in range(50)))
    under = str(full).split("\n\n")[2]
    assert len(under) < 450
    assert re.search(r", \+\d\d\smore$", under)
    assert "router_" + "x" * 49 in full.to_string(every_row=True, width=200)


def test_remarks_wrap_when_they_must():
    whole = f"note: {'x' * 17} {'y' * 16}"
    assert report(notes=[whole[6:]]).to_string(width=40).endswith(f"\n{whole}")
    assert report(notes=[whole[6:] + "y"]).to_string(width=40).endswith(f"\nnote: {'x' * 17}\n  {'y' * 17}")


def test_a_word_that_is_wider_than_a_line_is_shortened():
    assert report(notes=["x" * 50]).to_string(width=40).splitlines()[-1] == "  " + "x" * 14 + "…" + "x" * 23


def test_control_characters_and_surrogates_are_escaped_everywhere():
    full = report(module("a\x1b[31m\nb"), foo("\ud800"), notes=["\x1b[31m"], unmatched=["\ud800"])
    for text in (str(full), full.to_string(every_row=True), full.to_markdown(), full._repr_html_(), repr(full)):
        assert text.replace("\n", "").isprintable()
    assert r"a\x1b[31m\nb" in str(full)


def test_every_row_shows_every_row():
    rows = [*(module(f"layers.{i}.fc") for i in range(32)), module("idle", calls=0, status=Status.NOT_EXECUTED)]
    text = report(*rows).to_string(every_row=True)
    assert all(re.search(rf"^layers\.{i}\.fc +Linear", text, re.MULTILINE) for i in range(32))
    assert re.search(r"^idle .* not executed$", text, re.MULTILINE)
    assert "not executed:" not in text


def test_the_root_has_a_name():
    text = str(report(module("", "Net"), op("", "add")))
    assert re.search(r"^\(model\) +Net ", text, re.MULTILINE)
    assert re.search(r"^in \(model\) +add ", text, re.MULTILINE)


def test_a_large_model_fits_on_a_screen():
    rows = llama(80, uncovered=True)
    assert len(rows) > 80 * 55
    text = str(report(*rows))
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 100
    # What is not covered keeps its whole path, and is not put under a block.
    assert all(line.startswith("in model.layers.{0..79}.mlp x80 ") for line in text.splitlines()[4:6])
    assert "self_attn.q_proj" in text
    assert unfolded(fold(rows)) == Counter((row.path, row.target) for row in rows)


def test_a_table_that_is_too_wide_names_a_block_once():
    rows = [row for row in llama(4) if row.path.startswith("model.layers")]
    lines = str(report(*rows)).splitlines()
    assert lines[4] == "model.layers.{0..3} x4"
    assert lines[5].split() == ["input_layernorm", "LlamaRMSNorm", "Norm()", "4", "ruled"]
    assert any(line.startswith("  in (itself) ") for line in lines)
    wide = report(*rows).to_string(width=300)
    natural = max(map(len, wide.splitlines()))
    assert report(*rows).to_string(width=natural) == wide
    assert "\nmodel.layers.{0..3} x4\n" in report(*rows).to_string(width=natural - 1)
    assert re.search(
        r"^model\.layers\.\{0\.\.3\}\.input_layernorm +x4 +LlamaRMSNorm +Norm\(\) +LlamaRMSNorm ", wide, re.M
    )


def test_a_block_of_one_line_needs_no_heading_and_notes_leave_the_block_out():
    rows = [module(f"encoder.blocks.{i}.{'x' * 8}.attention", note=f"inside encoder.blocks.{i}.mlp") for i in range(4)]
    (line,) = report(*rows).to_string(width=100).splitlines()[4:]
    assert re.match(r"encoder\.blocks\.\{0\.\.3\}\.x+\.attention x4 ", line)
    rows += [dataclasses.replace(row, target="Bilinear") for row in rows]
    heading, *lines = report(*rows).to_string(width=100).splitlines()[4:]
    assert heading == "encoder.blocks.{0..3} x4"
    assert [line.split("  ")[-1] for line in lines] == ["ruled, inside mlp"] * 2


def test_a_list_runs_on_into_the_empty_columns_after_it():
    names = ["view", "transpose", "contiguous", "permute", "flatten"]
    rows = [module("fc"), *(op("fc", name) for name in names)]
    lines = report(*rows).to_string(width=72).splitlines()
    assert re.search(r" view, transpose, contiguous, permute, flatten +5  exact$", lines[-1])
    assert lines[-1].index("view") == lines[-2].index("Linear") == lines[2].index("what")
    assert lines[-1].index("exact") == lines[-2].index("ruled") == lines[2].index("status")
    assert re.search(r" view, transpose, .*\+\d more +5  exact$", report(*rows).to_string(width=50).splitlines()[-1])


def test_a_shortened_path_keeps_both_ends():
    path = "backbone." + "x" * 150 + ".head"
    line = next(line for line in str(report(module(path))).splitlines() if "…" in line)
    assert re.match(r"backbone\.x+…x+\.head ", line)


LONG = st.one_of(
    st.text(max_size=30), st.text(st.characters(categories=["Lo", "Mn", "So", "Nd"]), max_size=200), NUMBERED
)
UGLY = st.lists(
    st.builds(
        Row,
        kind=st.sampled_from(["module", "op"]),
        path=LONG,
        target=LONG,
        rule=LONG,
        key=LONG,
        calls=st.integers(0, 10**30),
        status=st.sampled_from(Status),
        aliases=st.lists(LONG, max_size=3).map(tuple),
        note=LONG,
    ),
    max_size=6,
)


@given(UGLY, st.lists(LONG, max_size=3), st.integers(40, 160), st.booleans(), st.booleans())
@settings(deadline=None)
def test_no_line_is_wider_than_asked_for(rows, names, width, every_row, executed):
    ugly = report(*rows, unmatched=names, notes=names, executed=executed)
    text = ugly.to_string(every_row=every_row, width=width)
    # Whatever splitlines() takes for the end of a line must have been escaped.
    assert text.splitlines() == text.split("\n")
    assert max(map(columns, text.splitlines())) <= width
    text.encode()
    assert len(repr(ugly).splitlines()) == 1


@given(UGLY)
@settings(deadline=None)
def test_markdown_has_a_line_for_each_row_and_html_is_well_formed(rows):
    markdown = report(*rows).to_markdown(every_row=True)
    table = [line for line in markdown.split("\n") if line.startswith("|")]
    assert len(table) == (len(rows) + 2 if rows else 0)
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table}) <= 1
    html = report(*rows)._repr_html_()
    assert html.count("<td>") == html.count("</td>")
    assert set(re.findall(r"<(\w+)", html)) <= {
        "div",
        "style",
        "p",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }


def test_html_escapes_and_marks_what_is_uncovered():
    html = report(foo("a", "<script>alert('x')</script>"), module("b", key="\"'b'\"&"), notes=["<b>"])._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html
    assert "note: &lt;b&gt;" in html
    assert html.index('<tr class="lxt-uncovered">') < html.index('<tr class="lxt-ruled">')
    assert "prefers-color-scheme:dark" in html
    assert ".lxt-uncovered td{" in html
    assert "NOT complete: 1 uncovered" in html
    assert "http" not in html


def test_markdown_escapes():
    rows = [
        module("a", key="'a|b' | *.attn"),
        op("", "<lambda>"),
        op("", "__add__"),
        op("", "pixel_shuffle", note="x"),
    ]
    markdown = report(*rows, notes=["`a`"]).to_markdown()
    assert markdown.startswith("**complete: 1 module and 3 kinds of op, nothing uncovered**\n\n| where")
    for text in (r"'a\|b' \| \*.attn", r"\<lambda>", r"\_\_add\_\_", "pixel_shuffle", r"note: \`a\`"):
        assert text in markdown


def test_a_name_that_looks_like_a_number_stays_as_it_is():
    assert "| 1e3 " in report(op("1.10", "1e3")).to_markdown()
    assert "| in 1.10 " in report(op("1.10", "1e3")).to_markdown()


# ---- the data ------------------------------------------------------------------------------------------------------


def test_dictionaries_are_json():
    rows = [module("a.0", aliases=("b.0",), note="x"), module("a.1"), foo("")]
    dicts = report(*rows).to_dicts()
    assert dicts[0] == {
        "kind": "module",
        "path": "a.0",
        "target": "Linear",
        "rule": EPSILON,
        "key": "Linear",
        "calls": 1,
        "status": "ruled",
        "aliases": ["b.0"],
        "note": "x",
    }
    back = [
        Row(**{**entry, "status": Status(entry["status"]), "aliases": tuple(entry["aliases"])})
        for entry in json.loads(json.dumps(dicts))
    ]
    assert back == rows
    assert all(type(entry["status"]) is str for entry in dicts)


def test_complete_needs_a_forward_and_nothing_uncovered():
    assert report(module("a")).complete
    assert report(module("a", status=Status.NOT_EXECUTED), unmatched=["nn.Conv3d"]).complete
    assert not report(module("a"), foo("")).complete
    assert not report(module("a"), executed=False).complete
    assert not report(module("a"), carried=False).complete
    assert not report(module("a"), in_parts=True).complete


def test_rows_by_status_and_in_order():
    rows = [module("b"), foo("a.1"), module("c", status=Status.NOT_EXECUTED), foo("a.0")]
    full = report(*rows, unmatched=["nn.Conv3d"])
    assert full.rows == tuple(rows)
    assert full.uncovered == (rows[1], rows[3])
    assert full.not_executed == (rows[2],)
    assert full.unmatched == ("nn.Conv3d",)


def test_reports_are_immutable_and_equal_by_content():
    rows = [module("a")]
    one, same = CoverageReport(rows, executed=True), CoverageReport(tuple(rows), executed=True)
    rows.append(module("b"))
    assert one == same
    assert hash(one) == hash(same)
    assert one != CoverageReport(rows, executed=True)
    assert one != CoverageReport(one.rows, executed=False)
    assert one != CoverageReport(one.rows, executed=True, notes=["x"])
    assert one != CoverageReport(one.rows, executed=True, unmatched=["x"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.rows = ()


def test_statuses_print_as_their_words():
    assert [str(status) for status in Status] == [status.value for status in Status]
    assert f"{Status.NOT_EXECUTED}" == "not executed"
