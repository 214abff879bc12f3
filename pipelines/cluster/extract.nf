// One Nextflow process around --shard. Written after the documentation of Nextflow; not run by this
// project's tests.
//
//   nextflow run extract.nf --slides /data/slides --out /shared/features --encoder phikon --shards 8
nextflow.enable.dsl = 2

params.slides = null
params.out = null
params.encoder = 'texture'
params.shards = 8

process EXTRACT {
    tag "${shard}/${params.shards}"
    cpus 8
    memory '32 GB'
    time '8h'
    // 75: drained before the time limit or a preemption; the same command goes on.
    errorStrategy { task.exitStatus in [75, 137, 143] ? 'retry' : 'finish' }
    maxRetries 20

    input:
    val shard

    output:
    val shard

    script:
    // Results go to the shared folder itself: files appear there only when they are whole, and a
    // retry skips them.
    """
    wsipipe extract '${params.slides}' --out '${params.out}' --encoder '${params.encoder}' \\
        --shard ${shard}/${params.shards} --grace 120
    """
}

workflow {
    EXTRACT(Channel.of(1..params.shards))
}
