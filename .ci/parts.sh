# Sourced by .ci/run and .ci/nightly: runs their parts and prints how many seconds each took.
declare -a TIMES=()

# part NAME COMMAND...: the first part that fails ends the run; what was measured is printed all the same.
part() {
  local name=$1 started=$SECONDS
  shift
  echo "== $name"
  CURRENT="$name" CURRENT_STARTED=$started
  "$@"
  TIMES+=("$((SECONDS - started)) s  $name")
  CURRENT=
}

print_times() {
  [ -z "${CURRENT:-}" ] || TIMES+=("$((SECONDS - CURRENT_STARTED)) s  $CURRENT (failed)")
  echo "== seconds per part"
  [ ${#TIMES[@]} -eq 0 ] || printf '%s\n' "${TIMES[@]}"
  echo "$SECONDS s  all"
}
