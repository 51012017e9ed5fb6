"""Every page in a real browser that reaches nothing else: what a reader does works, and the console is silent."""

from __future__ import annotations

import re

import pytest
import torch
from playwright.sync_api import expect

import allheads as ah
from allheads.gates.opening import gate_part


@pytest.fixture(scope="module")
def attention_page(twin, ids, tmp_path_factory):
    view = ah.plots.attention(twin, ids, heads=[f"L{layer}.A{head}" for layer in range(3) for head in range(4)])
    return view.save(tmp_path_factory.mktemp("pages") / "attention.html")


@pytest.fixture(scope="module")
def flows(twin, ids):
    return ah.graph(twin, ids, (3, 5), budget=15)


@pytest.fixture(scope="module")
def explorer(twin, ids, tmp_path_factory):
    return ah.plots.explore(twin, ids, budget=15).save(tmp_path_factory.mktemp("pages") / "explore.html")


def _chosen(opened) -> str:
    return opened.page.locator("h1").first.inner_text()


def _tiles(page) -> list[str]:
    return page.locator(".grid button:visible").evaluate_all("all => all.map((each) => each.dataset.label)")


def _edges_drawn(page) -> int:
    return page.locator(".flow .edge").evaluate_all("all => all.filter((each) => each.style.display !== 'none').length")


def _opened_card(opened) -> str:
    return opened.page.locator(".card h2").inner_text()


def test_hovering_a_token_shows_where_it_looks_and_what_looks_at_it(browser, attention_page, cache):
    with browser.open(attention_page, fragment="L1.A2") as opened:
        assert _chosen(opened) == "L1.A2"
        opened.page.hover('.strip [data-at="12"]')
        pattern = cache["blocks.1.attn.hook_pattern"][0, 2]
        looks, looked = (section.split("\n") for section in opened.words(".lists section"))
        for lines, weights in ((looks, pattern[12]), (looked, pattern[:, 12])):
            best = weights.topk(8)
            assert lines[0].startswith("12 ") and len(lines) > 2
            for line, value, at in zip(lines[1:9], best.values.tolist(), best.indices.tolist(), strict=False):
                weight, where = line.split(" ")[:2]
                assert float(weight) == pytest.approx(value, abs=0.003)
                assert float(weights[int(where)]) == pytest.approx(weights[at].item(), abs=0.005)
        fill = opened.page.locator('.strip [data-at="0"]').evaluate("each => each.style.backgroundColor")
        line = opened.page.locator('.strip [data-at="20"]').evaluate("each => each.style.borderBottomColor")
        assert fill and line
        opened.page.hover("h1")
        assert opened.words(".lists section") == []
        assert opened.quiet()


def test_hovering_a_cell_tells_its_weight(browser, attention_page, cache):
    with browser.open(attention_page, fragment="L0.A1") as opened:
        size = opened.page.locator(".pattern canvas").evaluate("each => each.clientWidth") / 23
        opened.page.hover(".pattern canvas", position={"x": 4.5 * size, "y": 9.5 * size})
        said = opened.page.locator("p[aria-live]").nth(1).inner_text()
        weight = float(cache["blocks.0.attn.hook_pattern"][0, 1, 9, 4])
        assert re.match(r"9 .* looks at 4 ", said) and float(said.rsplit(" ", 1)[1]) == pytest.approx(weight, abs=0.003)


def test_the_large_picture_is_the_pattern_in_colour(browser, attention_page, cache):
    """Light and dark: the pixels grow darker, or lighter, with the weight, from the page's own colour."""
    pattern = cache["blocks.2.attn.hook_pattern"][0, 3]
    for dark in (False, True):
        with browser.open(attention_page, fragment="L2.A3", dark=dark) as opened:
            expect(opened.page.locator(".pattern canvas")).to_have_attribute(
                "aria-label", re.compile("L2.A3, 23 by 23")
            )
            read = "each => Array.from(each.getContext('2d').getImageData(0, 0, 23, 23).data)"
            pixels = torch.tensor(opened.page.locator(".pattern canvas").evaluate(read)).reshape(23, 23, 4).float()
            lightness = pixels[..., :3] @ torch.tensor([0.3, 0.59, 0.11])
            order = (lightness if dark else -lightness).flatten()[pattern.flatten().argsort()]
            assert bool((order.diff() >= -2.0).all()) and float(order[-1] - order[0]) > 100
            page = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert page == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
            assert pixels[0, 22, :3].tolist() == ([13, 17, 23] if dark else [255, 255, 255])


def test_heads_are_filtered_searched_and_linked_to(browser, attention_page):
    with browser.open(attention_page) as opened:
        page = opened.page
        shown = page.locator(".grid button:visible")
        assert shown.count() == 12
        page.select_option("select", "L1")
        assert _tiles(page) == [f"L1.A{head}" for head in range(4)]
        page.select_option("select", "")
        page.keyboard.press("/")
        page.keyboard.type("A3")
        assert _tiles(page) == [f"L{layer}.A3" for layer in range(3)]
        page.click('[data-label="L2.A3"]')
        assert page.url.endswith("#L2.A3") and _chosen(opened) == "L2.A3"
        page.evaluate("location.hash = '#L0.A2'")
        expect(page.locator("h1")).to_have_text("L0.A2")
        assert opened.quiet()


def test_what_is_large_is_among_what_is_shown(browser, attention_page):
    with browser.open(attention_page, fragment="L0.A2") as opened:
        page = opened.page
        page.select_option("select", "L2")
        assert _chosen(opened) == "L2.A0" and page.url.endswith("#L2.A0")
        page.fill('[aria-label="Search by label"]', "A3")
        assert _chosen(opened) == "L2.A3"
        page.fill('[aria-label="Search by label"]', "")
        page.select_option("select", "")
        assert _chosen(opened) == "L2.A3"
        assert opened.quiet()


def test_a_pinned_token_is_seen_and_stays_while_heads_change(browser, attention_page):
    with browser.open(attention_page, fragment="L1.A2") as opened:
        page, caption = opened.page, opened.page.locator("p[aria-live]").nth(1)
        page.click('.strip [data-at="12"]')
        assert page.locator(".strip .held").inner_text() == page.locator('.strip [data-at="12"]').inner_text()
        assert caption.inner_text().startswith("Pinned:")
        page.click('[data-label="L2.A1"]')
        expect(page.locator(".strip .held")).to_have_attribute("data-at", "12")
        assert opened.words(".lists h3")[0].startswith("12 ")
        page.click('.strip [data-at="12"]')  # lets go
        assert page.locator(".strip .held").count() == 0 and not caption.inner_text().startswith("Pinned:")
        page.hover('.strip [data-at="5"]')
        assert opened.words(".lists h3")[0].startswith("5 ")
        assert opened.quiet()


def test_a_link_brings_its_tile_into_sight_and_labels_are_whole(browser, tmp_path):
    patterns = torch.full((1200, 2, 2), 0.5).tril().div(torch.tensor([[0.5], [1.0]]))
    page = ah.plots.attention([patterns] * 11, ["a", "b"], layers=[10]).save(tmp_path / "many.html")
    with browser.open(page, fragment="L10.A1187") as opened:
        expect(opened.page.locator('[data-label="L10.A1187"]')).to_be_in_viewport()
        expect(opened.page.locator('[data-label="L10.A0"]')).not_to_be_in_viewport()
        cut = "all => all.filter((each) => each.scrollWidth > each.clientWidth).length"
        assert opened.page.locator(".grid button").evaluate_all(cut) == 0


def test_rows_are_layers_and_a_matrix_has_names_on_both_axes(browser, attention_page, twin, ids, tmp_path):
    with browser.open(attention_page, fragment="L1.A2") as opened:
        page = opened.page
        places = {
            label: page.locator(f'[data-label="{label}"]').bounding_box() for label in ("L0.A1", "L2.A1", "L2.A3")
        }
        assert places["L0.A1"]["x"] == places["L2.A1"]["x"] < places["L2.A3"]["x"]
        assert places["L0.A1"]["y"] < places["L2.A1"]["y"] == places["L2.A3"]["y"]
        names = page.locator(".strip [data-at]").all_text_contents()
        for side in ("keys", "queries"):
            assert page.locator(f".axes .{side} span").all_text_contents() == names
        size = page.locator(".pattern canvas").evaluate("each => each.clientWidth") / 23
        page.hover(".pattern canvas", position={"x": 4.5 * size, "y": 9.5 * size})
        assert page.locator(".axes .at").all_text_contents() == [names[4], names[9]]
        assert page.locator(".cross:visible").count() == 2
        assert page.locator(".masked:visible").count() == 1
        assert opened.quiet()
    full = ah.plots.attention(torch.full((1, 4, 4), 0.25), list("abcd")).save(tmp_path / "full.html")
    with browser.open(full) as opened:  # a token that sees what comes later: nothing is masked
        expect(opened.page.locator(".pattern canvas")).to_have_attribute("aria-label", re.compile("4 by 4"))
        assert opened.page.locator(".masked:visible").count() == 0


def test_heads_are_marked_by_what_they_do_and_kept_to_compare(browser, tmp_path):
    names = list("abcabc")
    previous, again, rest = torch.eye(6).roll(-1, 1).tril() * 0.9, torch.zeros(6, 6), torch.eye(6) * 0.1
    for query, key in ((3, 1), (4, 2), (5, 3)):
        again[query, key] = 0.8
    previous = torch.zeros(6, 6)
    previous[range(1, 6), range(5)] = 0.9
    heads = torch.stack([rest, previous, again])
    heads[:, :, 0] += 1 - heads.sum(-1)
    path = ah.plots.attention(heads, names).save(tmp_path / "marks.html")
    with browser.open(path) as opened:
        page = opened.page
        for mark, best in (
            ("previous token", "L0.A1 0.91"),
            ("induction", "L0.A2 0.80"),
            ("first token", "L0.A0 0.90"),
        ):
            page.select_option('label:has-text("Mark") select', mark)
            expect(page.locator("p[aria-live] button").first).to_have_text(re.compile(f"{best[:7]}"))
            label, score = page.locator("p[aria-live] button").first.inner_text().rsplit(" ", 1)
            pairs = {"previous token": [(q, q - 1) for q in range(1, 6)], "first token": [(q, 0) for q in range(1, 6)]}
            cells = pairs.get(mark, [(3, 1), (4, 2), (5, 3)])
            weights = heads[ah.Label.parse(label).index]
            assert float(score) == pytest.approx(sum(float(weights[cell]) for cell in cells) / len(cells), abs=0.006)
        page.click('[data-label="L0.A1"]')
        page.click("text=Keep to compare")
        page.click('[data-label="L0.A2"]')
        labels = page.locator(".pattern canvas").evaluate_all("all => all.map((each) => each.ariaLabel)")
        assert [label[:16] for label in labels] == ["Pattern of L0.A2", "Pattern of L0.A1"]
        page.click('[aria-label="Drop L0.A1"]')
        assert page.locator(".pattern canvas").count() == 1
        assert opened.quiet()


def test_thumbnails_are_painted(browser, attention_page):
    with browser.open(attention_page) as opened:
        expect(opened.page.locator('[data-label="L2.A3"] canvas')).to_have_attribute("width", "23")


def test_everything_can_be_reached_by_keyboard(browser, attention_page):
    with browser.open(attention_page) as opened:
        page = opened.page
        focused = """(() => { const at = document.activeElement;
            return at.getAttribute("aria-label") ?? at.dataset.label ?? at.role ?? at.tagName; })()"""
        order = []
        for _ in range(7):
            page.keyboard.press("Tab")
            order.append(page.evaluate(focused))
        assert order[:5] == ["SELECT", "SELECT", "Search by label", "L0.A0", "BUTTON"]
        assert order[5].startswith("Pattern of L0.A0") and order[6] == "option"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.locator('.strip [aria-selected="true"]').get_attribute("data-at") == "2"
        page.keyboard.press("Enter")
        page.hover("h1")
        assert page.locator('.strip [aria-selected="true"]').get_attribute("data-at") == "2"
        page.keyboard.press("Escape")
        assert page.locator('.strip [aria-selected="true"]').count() == 0
        page.focus('[data-label="L0.A0"]')
        page.keyboard.press("ArrowRight")
        expect(page.locator("h1")).to_have_text("L0.A1")


def test_tokens_stay_text(browser, attention_page):
    with browser.open(attention_page) as opened:
        tokens = opened.page.locator(".strip [data-at]").all_text_contents()
        assert tokens[:4] == ["</script>", "<!--", "<b>bold</b>", "·a·&·b"]
        assert opened.page.locator("b").count() == 0 and opened.quiet()


def test_slots_and_cross_attention_have_two_lists(browser, twin, ids, tmp_path):
    path = ah.plots.attention(twin, ids, heads="L2.N5").save(tmp_path / "n.html")
    with browser.open(path) as opened:
        assert opened.page.locator(".strip").count() == 2
        opened.page.hover('.strip >> nth=1 >> [data-at="0"]')
        assert "0 self is looked at by" in opened.words(".lists section")[0]
        assert opened.quiet()


def test_in_a_frame_as_notebooks_do(browser, twin, ids, tmp_path):
    """The frame takes the theme of the page around it, not the system's."""
    frame = ah.plots.attention(twin, ids, layers=[1])._repr_html_()
    for ground, theme in (("#111", "dark"), ("#fff", "light")):
        path = tmp_path / f"{theme}.html"
        path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="background:{ground}"><div>{frame}</div>')
        with browser.open(path, dark=theme == "light") as opened:
            inside = opened.page.frame_locator("iframe")
            expect(inside.locator("html")).to_have_attribute("data-theme", theme)
            inside.locator('[data-label="L1.A3"]').click()
            expect(inside.locator("h1")).to_have_text("L1.A3")
            assert opened.quiet()


def test_a_frame_follows_the_notebook_when_its_theme_changes(browser, twin, ids, tmp_path):
    path = tmp_path / "live.html"
    frame = ah.plots.attention(twin, ids, layers=[1])._repr_html_()
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="background:#fff"><div>{frame}</div>')
    with browser.open(path) as opened:
        root = opened.page.frame_locator("iframe").locator("html")
        expect(root).to_have_attribute("data-theme", "light")
        opened.page.evaluate("document.body.style.background = '#111'")
        expect(root).to_have_attribute("data-theme", "dark")
        assert opened.quiet()


def test_edges_come_back_when_the_pointer_leaves_and_a_click_holds_them(browser, flows, tmp_path):
    path = ah.plots.graph(flows).save(tmp_path / "graph.html")
    with browser.open(path) as opened:
        page, lit = opened.page, opened.page.locator(".flow .lit")
        first, second = (page.locator(f'[data-name="{part.name}"]') for part in flows.parts[:2])
        first.hover()
        assert lit.count() == 1
        page.hover("h1")
        assert lit.count() == 0
        first.click()
        expect(page.locator(".card h2")).to_be_in_viewport()
        second.hover()
        page.hover("h1")
        assert lit.count() == 1 and flows.parts[0].label in page.locator(".told h3").first.inner_text()
        first.focus()
        page.keyboard.press("Escape")
        page.hover("h1")
        assert lit.count() == 0
        assert opened.quiet()


def test_a_graph_fits_its_box_and_names_what_matters(browser, twin, ids, tmp_path):
    found = ah.graph(twin, ids, (3, 5), budget=150)
    path = ah.plots.graph(found, edges=40).save(tmp_path / "graph.html")
    for width, height in ((1440, 900), (390, 844)):
        with browser.open(path, width=width, height=height) as opened:
            page, svg = opened.page, opened.page.locator(".flow svg")
            expect(page.locator(f'[data-name="{found.nodes[0].name}"]')).to_be_in_viewport()
            box = svg.bounding_box()
            assert box["width"] <= page.locator(".flow").bounding_box()["width"] <= width
            assert box["y"] + box["height"] <= height
            named = page.locator(".flow .names text").all_text_contents()
            assert named[0] == found.target and named[1:] == [part.label for part in found.parts[:15]]
            assert opened.quiet()
    with browser.open(path) as opened:
        page = opened.page
        assert _edges_drawn(page) == 40
        drawn = sorted((abs(edge.weight) for edge in found.edges), reverse=True)
        slider, share = page.locator("input[type=range]"), page.locator(".tools .soft")
        for count in (40, 100):
            slider.fill(str(count))
            percent = round(100 * sum(drawn[:count]) / sum(drawn))
            assert share.inner_text().startswith(f"{count} of {len(drawn)} edges, {percent} %")
        before = page.locator(f'[data-name="{found.nodes[0].name}"]').bounding_box()
        page.click('[aria-label="Zoom in"]')
        page.wait_for_timeout(400)
        assert page.locator(f'[data-name="{found.nodes[0].name}"]').bounding_box() != before
        page.click("text=Fit")
        page.wait_for_timeout(400)
        assert page.locator(f'[data-name="{found.nodes[0].name}"]').bounding_box() == before
        assert opened.quiet()


def test_two_pins_show_the_ways_between_them_and_labels_are_found(browser, flows, tmp_path):
    path = ah.plots.graph(flows).save(tmp_path / "graph.html")
    low = min(flows.parts, key=lambda part: part.layer)
    above, below = {low.name}, {flows.nodes[0].name}
    for _ in flows.nodes:
        above |= {edge.target for edge in flows.edges if edge.source in above}
        below |= {edge.source for edge in flows.edges if edge.target in below}
    ways = [edge for edge in flows.edges if edge.source in above and edge.target in below]
    assert len(ways) < len(flows.edges)
    with browser.open(path) as opened:
        page = opened.page
        page.fill('[aria-label="Find a node"]', low.name.lower())
        page.keyboard.press("Enter")
        assert _opened_card(opened) == low.label and low.label in page.locator(".told h3").first.inner_text()
        page.locator(f'[data-name="{flows.nodes[0].name}"]').focus()
        page.keyboard.press("Enter")
        assert page.locator(".told h3").inner_text().startswith(f"{len(ways)} edges on the ways between {low.name}")
        assert page.locator(".flow .edge.on").count() == len(ways)
        page.fill('[aria-label="Find a node"]', "L9.N77")
        page.keyboard.press("Enter")
        assert "L9.N77 is not in this graph" in page.locator(".tools").inner_text()
        stubs = page.locator(".node .stub").evaluate_all("all => all.map((each) => each.getTotalLength())")
        names = page.locator(".node").evaluate_all("all => all.map((each) => each.dataset.name)")
        for name, length in zip(names, stubs, strict=True):
            flow = flows[name].inflow.get("V")
            share = 0.0 if flow is None else min(1.0, abs(flow.left_out) / max(abs(flow.total), abs(flow.left_out)))
            assert length == pytest.approx(22 * share, abs=0.3), name
        assert opened.quiet()


def test_the_graph_shows_the_edges_of_the_node_under_the_pointer(browser, twin, ids, flows, tmp_path):
    path = ah.plots.graph(flows).save(tmp_path / "graph.html")
    first = flows.parts[0]
    with browser.open(path) as opened:
        page = opened.page
        assert page.locator(".node").count() == len(flows.nodes)
        assert _edges_drawn(page) == min(150, len(flows.edges))
        page.locator(f'[data-name="{first.name}"]').hover()
        drawn = sorted(flows.edges, key=lambda edge: -abs(edge.weight))
        own = [edge for edge in drawn if first.name in (edge.source, edge.target)]
        assert page.locator(".edge.on").count() == len(own) > 0
        into = max((edge for edge in drawn if edge.target == first.name), key=lambda edge: abs(edge.weight))
        assert f"{abs(into.weight):.3g}"[:4] in page.locator(".told").inner_text()
        page.locator(f'[data-name="{first.name}"]').click()
        assert _opened_card(opened) == first.label
        page.locator(f'[data-name="{flows.parts[1].name}"]').focus()
        page.keyboard.press("Enter")
        assert _opened_card(opened) == flows.parts[1].label
        assert opened.quiet()


def test_explorer_predictions_filters_and_cards(browser, explorer, twin, ids):
    with browser.open(explorer) as opened:
        page = opened.page
        assert page.locator(".text [role=option]").count() == 23
        with torch.no_grad():
            first, second = twin(ids)[0, 10].topk(2).indices.tolist()
        found = ah.attribute(twin, ids, (first, second), position=10)
        page.click('.text [data-at="10"]')
        sinks = [part for part in found.top(100) if part.position == 0]
        folded = page.locator(".tools .soft").first.inner_text()
        assert f"{len(sinks)} stand at the first token" in folded
        assert page.locator(".ranked tbody td:nth-child(2)").all_inner_texts()
        assert not any(cell.startswith("0 ") for cell in opened.words(".ranked tbody td:nth-child(2)"))
        page.select_option('label:has-text("Position") select', "")
        rows = page.locator(".ranked tbody tr")
        top = found.top(3)
        for at, part in enumerate(top):
            label, place, effect, _ = rows.nth(at).locator("th, td").all_inner_texts()
            assert label == part.label and place.startswith(f"{part.position} ")
            assert float(effect) == pytest.approx(part.effect, abs=2e-3)
        page.select_option('label:has-text("Position") select', "10")
        places = opened.words(".ranked tbody td:nth-child(2)")
        assert places and all(place.startswith("10 ") for place in places)
        page.select_option('label:has-text("Kind") select', "A")
        assert all(".A" in label for label in opened.words(".ranked tbody th"))
        page.select_option('label:has-text("Layer") select', "L1")
        assert all(label.startswith("L1.A") for label in opened.words(".ranked tbody th"))
        page.select_option('label:has-text("Position") select', "1+")
        assert not any(cell.startswith("0 ") for cell in opened.words(".ranked tbody td:nth-child(2)"))
        rows.first.click()
        assert _opened_card(opened) == rows.first.locator("th").inner_text()
        assert opened.quiet()


def test_explorer_search_links_and_keys(browser, explorer):
    with browser.open(explorer, fragment="L2.N3") as opened:
        page = opened.page
        assert _opened_card(opened) == "L2.N3"
        expect(page.locator(".card .strip").first).to_be_visible()  # its gate, whether it has a card or not
        page.keyboard.press("/")
        page.keyboard.type("L0.A1")
        assert set(opened.words(".ranked tbody th")) <= {"L0.A1"}
        page.keyboard.press("Enter")
        assert _opened_card(opened) == "L0.A1" and page.url.endswith("#L0.A1")
        page.fill('[aria-label="Search by label"]', "")
        before = page.locator(".columns h2").first.inner_text()
        page.locator(".text [data-at='5']").click()
        page.keyboard.press("]")
        assert page.locator(".columns h2").first.inner_text().startswith("After 6 ") and before.startswith("After 22 ")
        page.locator(".ranked tbody tr").first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert _opened_card(opened) == page.locator(".ranked tbody th").nth(1).inner_text()
        page.evaluate("location.hash = '#L9.N99999'")  # not there: the card stays
        assert _opened_card(opened) == page.locator(".ranked tbody th").nth(1).inner_text()
        assert opened.quiet()


def test_the_card_follows_the_prediction_and_labels_are_found_in_any_case(browser, explorer, twin):
    with browser.open(explorer) as opened:
        page = opened.page
        label = page.locator(".ranked tbody th").first.inner_text()
        said = page.locator(".card .soft").first.inner_text()
        page.click('.text [data-at="3"]')
        assert _opened_card(opened) == label and page.locator(".card .soft").first.inner_text() != said
        search = page.locator('[aria-label="Search by label"]')
        search.fill("l2.n5")
        search.press("Enter")
        assert _opened_card(opened) == "L2.N5"
        search.fill("L9.N77")
        search.press("Enter")
        assert (
            _opened_card(opened) == "L2.N5" and "No head or neuron L9.N77" in page.locator(".tools").first.inner_text()
        )
        assert opened.quiet()


def test_the_gate_and_the_pattern_of_a_card_are_of_one_head_in_every_theme(browser, explorer, twin):
    part = gate_part(twin.banks[2].gates)
    with browser.open(explorer) as opened:
        page = opened.page
        label = next(name for name in opened.words(".ranked tbody th") if ".N" in name)
        page.locator(f'.ranked [data-label="{label}"]').click()
        gate = page.locator(".card h3").first
        expect(gate).to_contain_text(f"{label}.{part}")
        assert (
            page.locator(".card select").evaluate("each => each.value || each.selectedOptions[0].text")
            == f"{label}.{part}"
        )
        colour = "each => each.style.backgroundColor"
        strip = page.locator(".card .strip").first.locator("span").first
        light = strip.evaluate(colour)
        page.emulate_media(color_scheme="dark")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        page.wait_for_function(f"document.querySelector('.card .strip span').style.backgroundColor !== '{light}'")
        assert opened.quiet()


def test_the_report_draws_every_plot_and_its_dropdown(browser, path, cache, twin):
    with browser.open(path) as opened:
        page = opened.page
        expect(page.locator("#gates image, #neurons image")).to_have_count(2)
        assert page.locator("#errors .point").count() == 6
        page.select_option('[data-plot="neurons"] select', "2")
        expect(page.locator("#neurons .gtitle")).to_have_text("Layer 2")
        drawn = page.evaluate(
            "({z: document.getElementById('neurons').data[0].z, y: document.getElementById('neurons').data[0].y})"
        )
        bank = twin.banks[2]
        rows = [bank.d_mlp + ah.Label.parse(label).index for label in drawn["y"]]
        gate = cache["blocks.2.mlp.hook_pattern_self"][0, rows]
        assert (torch.tensor(drawn["z"]) - gate).abs().max() <= 0.005
        page.click('#attention [data-label="L2.A1"]')
        assert page.locator("#attention h1").inner_text() == "L2.A1"
        buttons = page.locator("[data-title]").evaluate_all("all => all.map((each) => each.dataset.title)")
        assert set(buttons) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}  # nothing offers to send it away
        assert opened.quiet()


def test_a_figure_is_drawn_without_a_network(browser, twin, ids, tmp_path):
    with browser.open(ah.plots.gates(twin, ids).save(tmp_path / "g.html"), dark=True) as opened:
        expect(opened.page.locator("#view image")).to_have_count(1)
        assert opened.quiet()


def test_on_a_phone_what_matters_is_in_sight(browser, attention_page, explorer, path, twin, ids, flows, tmp_path):
    phone = {"width": 390, "height": 844}
    graph = ah.plots.graph(flows).save(tmp_path / "graph.html")
    gates = ah.plots.gates(twin, ids).save(tmp_path / "gates.html")
    shown = "node => { const { left, right } = node.getBoundingClientRect(); return left >= 0 && right <= innerWidth; }"
    for file in (attention_page, explorer, path, graph, gates):
        with browser.open(file, **phone) as opened:
            opened.page.wait_for_function("document.querySelector('canvas, svg')?.clientWidth > 1")
            assert opened.page.evaluate("document.documentElement.scrollWidth") == 390, file.name
            assert opened.quiet()
    with browser.open(attention_page, **phone) as opened:  # the chosen head stands below, whole
        canvas = opened.page.locator(".pattern canvas")
        expect(canvas).to_have_attribute("aria-label", re.compile("23 by 23"))
        expect(opened.page.locator("h1")).to_be_in_viewport()
        assert canvas.evaluate(shown)
    with browser.open(path, **phone) as opened:
        expect(opened.page.locator("#errors .gtitle")).to_have_text("Error and bound")
        assert opened.page.locator("#gates .gtitle").evaluate(shown)
        assert opened.page.locator(".modebar >> visible=true").count() == 0
        boxes = [opened.page.locator(f"#errors {part}").bounding_box() for part in (".gtitle", ".legend")]
        assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
