"""LaTeX shows every text unchanged: it is compiled where there is a LaTeX; elsewhere its escapes are read back."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from kdlib.report.latex import as_text, latex_of
from kdlib.report.markdown import escaped

HOSTILE = [
    r"\input{/etc/passwd}",
    r"a & b \\ c % d",
    "[2cm]",
    "$x_1^2$ {y} ~z #1",
    "<script>`'\"|",
    "*[x]*, --- `` '' ?`",
    "\\end{longtable}",
    "é ü — ± …",
]
SPELLED = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">"}
SPELLED |= {"textbar": "|", "textasciigrave": "`", "textquotedbl": '"', "ldots": "…"}


def read_back(latex):
    """The text that LaTeX shows, by a reader that knows the few commands for characters; others are an error."""
    assert not re.search(r"(?<!\\)[&%#_^~]|--(?!-)|``|''", latex.replace("---", "—"))
    latex = latex.replace("---", "—").replace(r"$\pm$", "±")
    assert "$" not in latex.replace(r"\$", "")
    spelled = re.sub(r"\\([a-z]+)\{\}", lambda match: f"\0{ord(SPELLED[match[1]])}\0", latex)
    single = re.sub(r"\\([&%$#_{}])", lambda match: f"\0{ord(match[1])}\0", spelled)
    assert "\\" not in single
    return re.sub(r"\0(\d+)\0", lambda match: chr(int(match[1])), re.sub(r"[{}]", "", single))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_text(text):
    assert read_back(as_text(text)) == text
    assert not as_text(text).startswith("[")


def tables(arms=None):
    frame = pd.DataFrame({"arm": [escaped(text) for text in HOSTILE], "n": "5", escaped("95% & [x]"): "1 to 2"})
    return latex_of("a_b", "full", frame if arms is None else arms, frame, ["n"])


def test_both_tables_have_their_rows_captions_and_columns():
    text = tables()
    assert text.count(r"\begin{longtable}") == 2
    assert re.findall(r"\\caption\{(.*?)\}", text) == [r"a\_b, full: arms", r"a\_b, full: claims"]
    assert text.count(r"\toprule") == 4  # also at the top of further pages
    rows = [line.split(" & ") for line in text.splitlines() if line.endswith("& 5 & 1 to 2 \\\\")]
    assert [read_back(row[0]) for row in rows] == [" ".join(text.split()) for text in HOSTILE] * 2
    assert text.count(r">{\raggedleft\arraybackslash}p{0.5cm}") == 2


def test_without_rows_there_is_a_comment():
    assert "% a_b, full: arms: nothing has been run yet\n" in tables(pd.DataFrame())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX")
@pytest.mark.slow
def test_it_compiles(tmp_path):
    packages = r"\usepackage[T1]{fontenc}\usepackage{array,booktabs,longtable}"
    body = rf"\documentclass{{article}}{packages}\begin{{document}}{tables()}\end{{document}}"
    (tmp_path / "page.tex").write_text(body)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
