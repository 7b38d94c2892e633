"""`llamesh completion SHELL`: the script that makes a shell ask `llamesh --complete` at every Tab."""

from __future__ import annotations

from typing import Literal

from llamesh.cli.printing import put

SCRIPTS = {
    "bash": """\
_llamesh() {
    local line=${COMP_LINE:0:COMP_POINT} words word current before
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    # Bash ends a word at a colon and at an equals sign: what stands before is on the line already.
    before=${current%"${current##*[:=]}"}
    COMPREPLY=()
    while IFS= read -r word; do
        [[ -n $word ]] && COMPREPLY+=("${word#"$before"}")
    done < <(llamesh --complete "${words[@]:1}" 2>/dev/null)
}
complete -o default -F _llamesh llamesh
""",
    "zsh": """\
#compdef llamesh
_llamesh() {
    local -a found
    found=(${(f)"$(llamesh --complete "${words[@]:1:$((CURRENT - 1))}" 2>/dev/null)"})
    compadd -a found || _files
}
compdef _llamesh llamesh
""",
    "fish": """\
complete -c llamesh -f -a '(llamesh --complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the completion script of a shell.

    Parameters
    ----------
    shell
        For bash: eval "$(llamesh completion bash)" in ~/.bashrc; zsh alike; fish: llamesh completion fish | source.
    """
    put(SCRIPTS[shell])
