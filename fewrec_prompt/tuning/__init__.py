"""Adapt a recommender from a few people's answers: what may learn, how it learns, and how what was learnt is kept.

| method | what learns |
|---|---|
| soft-prompt, p-tuning | virtual tokens before every prompt, by themselves or made by a small network |
| prefix | keys and values of virtual tokens in every layer |
| lora, adalora | low-rank changes inside the model; AdaLoRA moves rank to where it helps |
| full | every weight |
| head, prototypes | a classifier of hidden states; head-lora and head-full together with the model below it |

All go through one loop (loop.py). All but the classifiers (classifiers.py) ask the recommender's own questions and
learn from its own scores, so what is tuned is what is scored. Which people are learnt from is decided above this
package.
"""
