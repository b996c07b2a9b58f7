"""`dvc plots show` needs no network, colours by method, and says what it shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd

from pmd.files import ROOT


def test_the_page_holds_vega_and_the_committed_curves_by_method(tmp_path):
    for name in ("dvc.yaml", "params.yaml", ".dvc/config", ".dvc/plots/page.html", ".dvc/plots/by_method.json",
                 "results/default/figures/F5.csv"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "dvc", "plots", "show"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"DVC_NO_ANALYTICS": "1"}, check=True, capture_output=True)
    page = (tmp_path / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link)[^>]*(?:src|href)=", page)
    assert len(re.findall(r"<script>/\* vega", page)) == 3
    spec, _ = json.JSONDecoder().raw_decode(page, page.index("var spec = ") + len("var spec = "))
    assert spec["spec"]["encoding"]["color"]["field"] == "variant"
    shown = pd.DataFrame(spec["data"]["values"])
    drawn = pd.read_csv(ROOT / "results" / "default" / "figures" / "F5.csv")
    assert shown["variant"].tolist() == drawn["variant"].tolist()
    assert shown["mean"].astype(float).tolist() == drawn["mean"].tolist()
    assert spec["title"]["text"] == "Each method at the learning rate that is best on validation problems"
