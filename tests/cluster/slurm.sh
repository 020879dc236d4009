#!/usr/bin/env bash
# A Slurm of one node for tests and for developers, of Debian's slurm-wlm and munge, without systemd, cgroups and root's rights:
#     tests/cluster/slurm.sh start DIR && . DIR/env      # then sinfo, sbatch, squeue, scancel, scontrol find this Slurm
#     tests/cluster/slurm.sh stop DIR                    # cancels what runs, and leaves the logs in DIR
# Several may run at once: each has its own folder, ports, key and socket. Jobs run as who started it. There is no accounting, so no
# sacct: `scontrol show job` knows jobs for an hour after their end. Its two GPUs are two files.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

ports() { # two that are free now, and not among those that the system gives out by itself
    python3 -I - <<'PYTHON'
import random, socket
found = []
while len(found) < 2:
    port = random.randrange(20000, 32000)
    with socket.socket() as probe:
        if port not in found and probe.connect_ex(("127.0.0.1", port)):
            found.append(port)
print(*found)
PYTHON
}

patiently() { # a command, until it is true; not after 20 seconds
    local _
    for _ in $(seq 100); do
        "$@" && return
        sleep 0.2
    done
    return 1
}

configure() {
    local control node
    read -r control node < <(ports)
    cat >"$dir/slurm.conf" <<CONF
ClusterName=calosim
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$control
SlurmdPort=$node
AuthType=auth/munge
# Requeued jobs wait until no credential of their first life is valid: usually two minutes.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
# Nothing that a container lacks.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
# Four processors, whatever the machine has: distributed tests ask for two tasks.
SlurmdParameters=config_overrides
# What looks like two GPUs to who asks for them.
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Tests wait for none of the times that a real cluster takes.
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SchedulerType=sched/builtin
JobRequeue=1
KillWait=5
MinJobAge=3600
MailProg=/bin/true
NodeName=$(hostname -s) NodeAddr=127.0.0.1 Port=$node CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefMemPerCPU=500 State=UP OverSubscribe=YES
CONF
}

start() {
    local name
    for name in munged slurmctld slurmd sbatch; do
        command -v "$name" >/dev/null || { echo "$name is missing: apt-get install slurm-wlm munge" >&2; exit 3; }
    done
    mkdir -p "$dir"/{state,spool}
    chmod 755 "$dir"
    configure
    printf 'Name=gpu File=%s\n' /dev/null /dev/zero >"$dir/gres.conf"
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munge.pid" \
        --log-file="$dir/munge.log" --seed-file="$dir/munge.seed"
    export SLURM_CONF=$dir/slurm.conf
    echo "export SLURM_CONF=$SLURM_CONF" >"$dir/env"
    slurmctld -i
    slurmd
    patiently eval '[[ $(sinfo -h -o %T 2>/dev/null) == idle ]]' && return
    echo "the node did not come up:" >&2
    tail -n 20 "$dir"/{slurmctld,slurmd,munge}.log >&2
    stop
    exit 1
}

stop() {
    export SLURM_CONF=$dir/slurm.conf
    local name
    if [[ -e $dir/slurmctld.pid ]]; then
        scancel --user="$(id -un)" --full 2>/dev/null || true
        patiently eval '[[ -z $(squeue -h 2>/dev/null) ]]' || true
    fi
    for name in slurmd slurmctld munge; do
        [[ -s $dir/$name.pid ]] && kill "$(<"$dir/$name.pid")" 2>/dev/null || true
    done
    patiently eval '! compgen -G "$dir/*.pid" >/dev/null' || true # each removes its own when it ends
}

[[ $# == 2 && $1 =~ ^(start|stop)$ ]] || { sed -n '2,6s/^# \?//p' "$0"; exit 2; }
dir=$(mkdir -p "$2" && cd "$2" && pwd)
"$1"
