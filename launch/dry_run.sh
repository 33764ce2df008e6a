# shellcheck shell=bash
# Sourced by the scripts beside it: `--dry_run` prints what would be done, as it could be typed, and does nothing.

DRY_RUN=''
ARGUMENTS=()

# read_arguments "$@": takes `--dry_run` out and keeps the rest in ARGUMENTS.
read_arguments() {
  local argument
  for argument in "$@"; do
    if [ "$argument" = --dry_run ]; then
      DRY_RUN=yes
    else
      ARGUMENTS+=("$argument")
    fi
  done
}

# do_it COMMAND ARGUMENTS..: runs it, or prints it.
do_it() {
  if [ -n "$DRY_RUN" ]; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# flag NAME: the value of `--NAME=..` or `--NAME ..` among the arguments, the last one if it is repeated, as pdgen.train
# reads them; empty without one.
flag() {
  local argument value='' follows=''
  for argument in "${ARGUMENTS[@]+"${ARGUMENTS[@]}"}"; do
    if [ -n "$follows" ]; then
      value="$argument"
      follows=''
      continue
    fi
    case "$argument" in
      "--$1="* | "-$1="*) value="${argument#*=}" ;;
      "--$1" | "-$1") follows=yes ;;
    esac
  done
  printf '%s\n' "$value"
}

# need NAME..: says which of these flags are missing, and ends.
need() {
  local name
  for name in "$@"; do
    if [ -z "$(flag "$name")" ]; then
      echo "${0##*/}: --$name=... is missing. The first lines of the script say how it is used." >&2
      exit 2
    fi
  done
}
