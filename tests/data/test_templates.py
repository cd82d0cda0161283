import pytest

from scumble.data.templates import OBJECT_TEMPLATES, STYLE_TEMPLATES, TEMPLATES


@pytest.mark.parametrize(("kind", "least"), [("object", 20), ("style", 15)])
def test_each_has_one_place_for_the_word_and_is_unlike_the_others(kind, least):
    templates = TEMPLATES[kind]
    assert len(set(templates)) == len(templates) >= least
    for template in templates:
        assert template.count("{}") == 1
        assert "{" not in template.format("<pip>")
        assert template == template.strip()
        assert "," not in template


def test_objects_and_styles_differ():
    assert TEMPLATES == {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}
    assert not set(OBJECT_TEMPLATES) & set(STYLE_TEMPLATES)
    assert all("photo of" not in template for template in STYLE_TEMPLATES)
