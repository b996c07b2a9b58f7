"""PMD-mean: policy mirror descent with the mean reward in place of the log-partition function.

Reproduces Xu et al., arXiv:2602.05933. One concept per file; read them in this order:

params      the validated view of params.yaml
tasks       problem sets: the embedded arithmetic task, and one reader for every set
problem_sets, prompts   foreign problem sets, cleaned and counted; prompt templates
verifier    response -> extracted answer -> verdict and reward (pool: where untrusted text is compared)
policy      build, load, save a causal LM
packing, attention, forward   a pass without padding: layout, attention, log-probabilities and entropy
rollout     sample responses: the engine protocol and the torch engine (decode: on CUDA; vllm_engine: vLLM's)
objectives  advantages and losses: PMD-mean, its relatives and its baselines
theory      the population update: Lambert W, the mixed KL-chi^2 regulariser, finite samples
sft         the base model
minibatches, update   one step on a batch of rollouts: minibatches, log pi_t, the update, what it did
trainer     the reinforcement-learning loop (checkpoint: what a stopped run goes on from)
launch      many runs side by side, of ablations or tuning (processes: their workers; cpu: threads and memory)
distributed what the ranks of a torchrun job divide among them
scale, plan runs of any size by torchrun; what they take before they are started
evaluate    sample a checkpoint on a problem set and score it
benchmark   any model on any problem set, resumable, paired (examples: answers to read)
stats       pass@k and its kin, clustered intervals
style, figures, tables (typeset), claims, report   what the reader sees
"""
