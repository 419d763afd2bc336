"""SGLang: a server of its own, spoken to by token ids over HTTP."""
