#!/bin/bash
# The workflow on a real SLURM with one node, this machine, and two simulated GPUs.
# Run by hand as root; `make test` does not run it:
#
#   tests/manual/slurm/run.sh                  the smoke scale's Table 5
#   tests/manual/slurm/run.sh all              everything, or any other targets
#
# Needs Debian's packages slurmctld, slurmd, slurm-client and munge, and Python's
# snakemake-executor-plugin-slurm beside Snakemake. Keys, sockets, results and logs are in a
# temporary folder, which is removed when the script ends (KEEP=1 keeps it); daemons end with it.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
export PATH=$PATH:/usr/sbin OMP_NUM_THREADS=1

die() { printf 'error: %s\nfix: %s\n' "$1" "$2" >&2; exit 2; }
for program in slurmctld slurmd sbatch munged; do
    command -v $program >/dev/null || die "$program was not found" \
        "apt-get install slurmctld slurmd slurm-client munge"
done
"$python" -c 'import snakemake_executor_plugin_slurm' 2>/dev/null || die \
    "the executor plugin is not installed for $python" \
    "$python -m pip install snakemake-executor-plugin-slurm 'numpy<2.3', or set PYTHONPATH to it"
[ "$(id -u)" = 0 ] || die "slurmd starts jobs as their users, which needs root" \
    "run this as root, in a container for example"

conf=/etc/slurm/slurm.conf  # where jobs look for it: the plugin hides SLURM's variables from them
[ -e $conf ] && die "$conf exists: this machine already has a SLURM" \
    "use that one: snakemake --profile profiles/slurm"

here=$(mktemp -d /tmp/pcb-slurm.XXXX)
chmod 755 "$here"
mkdir "$here"/{state,spool,munge}
chmod 700 "$here/munge"
for gpu in 0 1; do mknod "$here/gpu$gpu" c 1 3; done  # /dev/null by other names
pids=()
finish() {
    set +e
    scancel --user=root 2>/dev/null
    kill "${pids[@]}" 2>/dev/null
    wait "${pids[@]}" 2>/dev/null
    rm -f $conf
    [ -n "${KEEP:-}" ] && echo "kept: $here" || rm -rf "$here"
}
trap finish EXIT

host=$(hostname -s)
cat >"$here/slurm.conf" <<CONF
ClusterName=pcb
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=36817
SlurmdPort=36818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$here/munge/socket
CredType=cred/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
MinJobAge=86400
JobRequeue=1
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo) Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
echo "NodeName=$host Name=gpu File=$here/gpu[0-1]" >"$here/gres.conf"
# No cgroups: a container may not have them. Releases before 23.02 do not know `disabled`, but use
# v1 only if a plugin above requires it.
case $(slurmd -V) in *" 2"[12].*) plugin=cgroup/v1 ;; *) plugin=disabled ;; esac
echo "CgroupPlugin=$plugin" >"$here/cgroup.conf"
mkdir -p "${conf%/*}"
ln -s "$here/slurm.conf" $conf

head -c 1024 /dev/urandom >"$here/munge/key"
chmod 400 "$here/munge/key"
munged --foreground --force --key-file="$here/munge/key" --socket="$here/munge/socket" \
    --pid-file="$here/munge/pid" --log-file="$here/munge/log" --seed-file="$here/munge/seed" \
    2>/dev/null & pids+=($!)
sleep 1
slurmctld -D -c -f "$here/slurm.conf" >"$here/slurmctld.log" 2>&1 & pids+=($!)
slurmd -D -f "$here/slurm.conf" >"$here/slurmd.log" 2>&1 & pids+=($!)
for _ in $(seq 30); do
    sinfo -h -o %t 2>/dev/null | grep -qx idle && break
    sleep 1
done
sinfo -h -o %t | grep -qx idle || {
    tail -20 "$here"/slurm*.log
    die "SLURM's node did not start" "read the log lines above"
}
sinfo -o '%P %N %t %c %m %G'

# Jobs of the smoke scale request one GPU each here, and compute on the CPU: the test is whether
# SLURM allocates the devices.
sed -e "s/gpus_per_job: 0/gpus_per_job: 1/" "$root/configs/scale/smoke.yaml" >"$here/smoke.yaml"
cd "$here"
set +e
"$python" -m snakemake --snakefile "$root/Snakefile" --directory "$here" \
    --profile "$root/profiles/slurm" --jobs 2 \
    --config scale="$here/smoke.yaml" results="$here/results" \
    --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 \
    --slurm-logdir "$here/slurm-logs" --slurm-keep-successful-logs \
    -- "${@:-table05}" 2>&1 | tee "$here/snakemake.log"
status=${PIPESTATUS[0]}
set -e
cd /

echo "== Jobs of SLURM: id, state, exit code, time, rule, allocated resources, device"
scontrol -d -o show jobs | sed -nE 's/^JobId=([0-9]+) .*JobState=(\S+) .*ExitCode=(\S+).* RunTime=(\S+) .*TRES=(\S+) .*/\1 \2 \3 \4 \5 &/p' |
    while read -r id state code time tres rest; do
        rule=$(sed -nE 's/.*Comment=(\S+).*/\1/p' <<<"$rest")
        device=$(sed -nE 's/.*GRES=(gpu\S*).*/\1/p' <<<"$rest")
        printf '%4s %-10s %-4s %s  %-70s %s %s\n' "$id" "$state" "$code" "$time" "$rule" "$tres" "$device"
    done
exit "$status"
