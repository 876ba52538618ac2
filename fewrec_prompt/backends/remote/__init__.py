"""Models behind a server that speaks OpenAI's protocol: texts go out as token ids, log-probabilities come back."""
