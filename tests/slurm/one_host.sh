#!/bin/bash
# A Slurm of one's own on this host for tests: one controller, three nodes with a made-up GPU each,
# preemption by requeue. No systemd, no cgroups, no accounting.
#
#   one_host.sh up FOLDER       start it; FOLDER/slurm.conf is then the SLURM_CONF to use
#   one_host.sh down FOLDER     end what was started, by its pid files
#
# Needs root and Debian (slurmctld, slurmd, slurm-client, munge).
set -euo pipefail
verb=$1 folder=$(realpath -m "$2")

configure() {
  local host node port
  host=$(hostname -s)
  mkdir -p "$folder"/{state,log,run,spool/n1,spool/n2,spool/n3}
  cat >"$folder/slurm.conf" <<EOF
ClusterName=wsipipe
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort=26817
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
SlurmdTimeout=15
SchedulerParameters=sched_interval=2,requeue_setup_env_fail
EOF
  for node in 1 2 3; do
    port=$((27000 + node))
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=2" \
      "RealMemory=4000 Gres=gpu:1 State=UNKNOWN" >>"$folder/slurm.conf"
  done
  cat >>"$folder/slurm.conf" <<EOF
PartitionName=low Nodes=n[1-3] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=25 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n[1-3] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
EOF
  # A GPU needs a device file, or the node is called invalid.
  echo 'NodeName=n[1-3] Name=gpu File=/dev/zero Flags=nvidia_gpu_env' >"$folder/gres.conf"
}

up() {
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      slurmctld slurmd slurm-client munge >/dev/null
  fi
  configure
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  setsid munged --force --key-file="$folder/munge.key" --socket="$folder/run/munge.socket" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" \
    --seed-file="$folder/run/munge.seed"
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -f "$SLURM_CONF"
  for node in n1 n2 n3; do slurmd -f "$SLURM_CONF" -N "$node"; done
  for _ in $(seq 30); do
    [ "$(sinfo -h -N -o '%t' 2>/dev/null | grep -c idle)" -ge 3 ] && return 0
    sleep 1
  done
  sinfo -N
  return 1
}

down() {
  local file
  # A node that still has a job does not end: cancel, and give the steps a moment.
  SLURM_CONF=$folder/slurm.conf scancel --user=root 2>/dev/null || true
  sleep 3
  for file in "$folder"/run/slurmd.*.pid "$folder/run/slurmctld.pid" "$folder/run/munged.pid"; do
    [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
    sleep 0.3
  done
}

"$verb"
