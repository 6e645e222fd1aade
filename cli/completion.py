"""`culvert completion`: the shell's word for completing commands and options."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete `culvert`.

    \b
    source <(culvert completion bash)
    culvert completion zsh >"${fpath[1]}/_culvert"
    culvert completion fish >~/.config/fish/completions/culvert.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, f"click knows {shell}"
    script = kind(context.find_root().command, {}, "culvert", "_CULVERT_COMPLETE")
    # Not `source()`: that of bash runs bash to see its version.
    click.echo(script.source_template % script.source_vars())
