"""PMD-mean: policy mirror descent with the mean reward in place of the log-partition function.

Reproduces Xu et al., arXiv:2602.05933. One concept per file; read them in this order:

params      the validated view of params.yaml
tasks       problem sets: the embedded arithmetic task, and one reader for every set
problem_sets, prompts   foreign problem sets, cleaned and counted; prompt templates
verifier    response -> extracted answer -> verdict and reward (pool: where untrusted text is compared)
policy      build, load, save a causal LM
packing, attention, forward   a pass without padding: layout, attention, log-probabilities and entropy
rollout     sample responses (the engine protocol and the torch engine; vllm_engine: vLLM's)
objectives  advantages and losses: PMD-mean, its relatives and its baselines
theory      the population update: Lambert W, the mixed KL-chi^2 regulariser, finite samples
sft         the base model
trainer     the reinforcement-learning loop
evaluate    sample a checkpoint on a problem set and score it
benchmark   any model on any problem set, resumable, paired (examples: answers to read)
stats       pass@k and its kin, clustered intervals
style, figures, tables, report   what the reader sees
"""
