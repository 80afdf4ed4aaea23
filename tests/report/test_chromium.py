"""Where no browser is installed."""

import pytest

from tests.report import chromium


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_browser_skips_a_test_and_fails_it_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chromium, "PROGRAM", None)
    monkeypatch.setenv("CI", ci)
    either = (pytest.fail.Exception, pytest.skip.Exception)  # a skip that escapes would skip this test
    with pytest.raises(either, match="found neither chromium nor google-chrome on PATH") as raised:
        chromium.require_browser()
    assert raised.type is outcome
