# Sourced by scripts whose registry is gone after the job: where it is, and how it comes and goes.
# $LORA_OPS_REGISTRY says where: the URL of backups, `wandb` (registry.backend in params.yaml says so, too), or
# nothing for the registry of this machine. $LORA_OPS_SIGNING_KEY_PEM, if set, is written to $LORA_OPS_SIGNING_KEY.

# A secret that isn't set is an empty variable at GitHub, which W&B's and S3's clients take for a wrong key.
for name in WANDB_API_KEY AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
  [ -n "${!name:-}" ] || unset "$name"
done

# restore_registry: begin with the last snapshot, and remember from which one.
restore_registry() {
  if [ -n "${LORA_OPS_SIGNING_KEY_PEM:-}" ]; then
    (umask 077 && mkdir -p "$(dirname "$LORA_OPS_SIGNING_KEY")" &&
      printf '%s\n' "$LORA_OPS_SIGNING_KEY_PEM" > "$LORA_OPS_SIGNING_KEY")
  elif [ -f "${LORA_OPS_SIGNING_KEY:-}" ]; then
    chmod 600 "$LORA_OPS_SIGNING_KEY" # GitLab writes its variables' files for everybody
  fi
  case ${LORA_OPS_REGISTRY:-} in
    "") ;;
    wandb) require_wandb ;;
    *)
      local said
      said=$(lora-ops registry restore --json -- "$LORA_OPS_REGISTRY") || { echo "$said" >&2; return 1; }
      RESTORED=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["head"])' <<<"$said")
      echo "The registry was restored from $LORA_OPS_REGISTRY: its log ends at $RESTORED."
      ;;
  esac
}

# push_registry: send back what this job changed, unless somebody else has changed it since.
push_registry() {
  case ${LORA_OPS_REGISTRY:-} in
    "") ;;
    wandb) lora-ops registry sync ;;
    *) lora-ops registry backup --expect-head="$RESTORED" -- "$LORA_OPS_REGISTRY" ;;
  esac
}

# An embedded registry would be made here, and be gone with the runner.
require_wandb() {
  python3 - <<'END'
import sys
from lora_ops.settings.params import load_settings
if load_settings().registry.backend != "wandb":
    sys.exit("LORA_OPS_REGISTRY is wandb, and params.yaml has another registry.backend: set it to wandb, too.")
END
}
