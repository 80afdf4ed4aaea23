"""The page of a data check."""

import dataclasses
import re
from pathlib import Path

from tests.hostile.checks import Outline, set_check
from vgpo.data.preview import check_verdict, write_page


def test_the_verdict_counts_rows_and_tokens() -> None:
    one = dataclasses.replace(set_check("plain"), left_out=None, lengths=[3, 1200])
    assert check_verdict([one]).headline == "All 1 rows of train_dataset are valid; prompts have 3 to 1,200 tokens"
    assert (check_verdict([one]).tone, check_verdict([one]).details) == ("gain", [])
    short = dataclasses.replace(one, field="eval_dataset", left_out="2 prompts are left out.", lengths=[2])
    both = check_verdict([one, short])
    assert both.headline == (
        "All rows are valid: 1 of train_dataset, 1 of eval_dataset; prompts have 2 to 1,200 tokens"
    )
    assert (both.tone, both.details) == ("open", ["2 prompts are left out."])


def test_the_page_says_so_on_top_and_loads_nothing(tmp_path: Path) -> None:
    page = write_page([set_check("plain")], tmp_path / "check.html", recipe="it.yaml").read_text(encoding="utf-8")
    assert Outline(page).texts_of("h2")[0].startswith("All 1 rows of train_dataset are valid")
    [policy] = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "script" not in policy
    assert not re.findall(r'(?:src|href)="', page)
