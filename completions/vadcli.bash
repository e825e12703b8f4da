
_vadcli_completion() {
    local IFS=$'
'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" \
                   COMP_CWORD=$COMP_CWORD \
                   _VADCLI_COMPLETE=complete_bash $1 ) )
    return 0
}

complete -o default -F _vadcli_completion vadcli

