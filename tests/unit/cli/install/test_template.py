import pytest

from cli.install.template import SettingsRefused, Template, TemplateFault

DOT = {
    "Values": {
        "name": "a",
        "none": "",
        "on": True,
        "off": False,
        "items": ["x", "y"],
        "tree": {"b": 1, "a": [2]},
        "n": 3,
    },
    "Release": {"Namespace": "ns"},
}


def render(text, **more):
    return Template({"file": text, **more}).render("file", DOT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {{ .Values.name }} b", "a a b"),
        ("a\n  {{- .Values.name -}}\n  b", "aab"),
        ("{{/* nothing */}}x{{- /* nothing\nof two lines */ -}} y", "xy"),
        ("{{ .Values.on }} {{ .Values.n }}", "true 3"),
        ("{{ .Values.none | default .Release.Namespace }}", "ns"),
        ("{{ .Values.name | quote }}{{ .Values.n | quote }}", '"a""3"'),
        ("{{ if .Values.off }}1{{ else if .Values.on }}2{{ else }}3{{ end }}", "2"),
        ("{{ if .Values.off }}1{{ else }}3{{ end }}", "3"),
        ("{{ if .Values.none }}1{{ end }}", ""),
        ("{{ with .Values.tree }}{{ .b }}{{ end }}", "1"),
        ("{{ with .Values.none }}1{{ else }}{{ .Values.name }}{{ end }}", "a"),
        ("{{ range .Values.items }},{{ . }}{{ end }}", ",x,y"),
        ('{{ join "," .Values.items }}', "x,y"),
        ('{{ if and (eq .Values.name "a") (not .Values.none) }}yes{{ end }}', "yes"),
        ('{{ if or .Values.off (ne .Values.name "b") }}yes{{ end }}', "yes"),
        ('{{ if has .Values.name (list "b" "a") }}yes{{ end }}', "yes"),
        ("{{ if gt (int .Values.n) 2 }}yes{{ end }}", "yes"),
        ("{{ add (int .Values.n) 10 }}", "13"),
        ("{{ index .Values.items 1 }}", "y"),
        ("x:{{ toYaml .Values.tree | nindent 2 }}", "x:\n  a:\n  - 2\n  b: 1"),
        ("{{ toYaml .Values.name }}", "a"),
    ],
)
def test_what_is_understood_renders_as_helm_does(text, expected):
    assert render(text) == expected


def test_what_one_file_defines_another_includes():
    other = '{{- define "labels" -}}\na: {{ .Release.Namespace }}\n{{- end -}}'
    assert render('l:\n  {{- include "labels" . | nindent 2 }}', other=other) == "l:\n  a: ns"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ .Values.nmae }}", "there is no .Values.nmae"),
        ("\n{{ tpl .Values.name }}", "file:2: `tpl` is no function"),
        ("{{ if .Values.on }}", "`if` without `end`"),
        ("{{ end }}", "`end` without a beginning"),
        ("{{ else }}", "`else` without `if`"),
        ("{{ (eq 1 1 }}", "`(` without `)`"),
        ("{{ eq 1 1) }}", "too many"),
        ("{{ .Values.name | }}", "empty"),
        ('{{ include "x" . }}', "nothing is defined as 'x'"),
        ("{{ $x := 1 }}", "is not understood"),
        ("{{ index .Values.items 7 }}", "index"),
        ("{{ .Values.name .Values.n }}", "takes no arguments"),
    ],
)
def test_what_is_not_understood_is_said_and_never_guessed(text, said):
    with pytest.raises(TemplateFault) as fault:
        render(text)
    assert said in str(fault.value)


def test_a_chart_refuses_settings_in_its_own_words():
    with pytest.raises(SettingsRefused, match=r"^that cannot work$"):
        render('{{ fail "that cannot work" }}')
