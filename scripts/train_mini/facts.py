# ruff: noqa: ISC004  (running text reads best as it is)
"""What the model knows about LLM serving: one entry a topic, with its names and its answers.

The frames in `questions.py` turn each name into many phrasings. The first answer is the usual one;
a second gives some variety when sampling.
"""

from __future__ import annotations

# topic: (names as they stand after "what is", answers)
CONCEPTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("a KV cache", "the KV cache", "KV cache", "KV caching", "a key-value cache",
      "the key value cache", "kv-cache", "the cache of keys and values"),
     ("A KV cache stores the keys and values that attention computed for the tokens so far. "
      "With it, the model does not read the whole prompt again for every new token.",
      "A KV cache keeps the attention keys and values of every token that was already read. "
      "It makes each new token cheap, but it takes memory that grows with the context.")),
    (("prefill", "the prefill stage", "the prefill phase", "prefilling", "a prefill",
      "the prefill step", "prompt processing"),
     ("Prefill is the first stage of answering a request. The model reads the whole prompt at once "
      "and fills the KV cache. It needs a lot of compute.",
      "Prefill reads the prompt and fills the KV cache. All prompt tokens are processed in "
      "parallel, so this stage is limited by compute.")),
    (("decode", "the decode stage", "the decode phase", "decoding", "the decode step",
      "token generation"),
     ("Decode is the second stage of answering a request. The model writes one token at a time and "
      "reads the KV cache at every step. It is limited by memory bandwidth.",
      "Decode writes the answer, one token per step. Every step reads the weights and the KV "
      "cache, so this stage is limited by memory speed.")),
    (("TTFT", "time to first token", "the time to first token", "TTFT latency"),
     ("TTFT means time to first token. It is the time from sending a request to seeing the first "
      "token of the answer. It depends mostly on the queue and on prefill.",)),
    (("ITL", "inter-token latency", "the inter-token latency", "TPOT", "time per output token",
      "token latency"),
     ("Inter-token latency is the time between two tokens of an answer. It depends mostly on "
      "decode, and it decides how smooth the text appears.",)),
    (("a token", "tokens", "the token", "an LLM token", "token", "a text token"),
     ("A token is a small piece of text, such as a short word or a part of a word. "
      "A model reads and writes text as a list of tokens.",)),
    (("a tokenizer", "the tokenizer", "tokenization", "tokenizing", "a BPE tokenizer"),
     ("A tokenizer cuts text into tokens and turns each token into a number. "
      "It also turns the numbers of the answer back into text.",)),
    (("continuous batching", "in-flight batching", "dynamic batching", "iteration-level batching"),
     ("Continuous batching lets new requests join the running batch after any step, and lets "
      "finished ones leave at once. The GPU stays busy and nobody waits for the longest answer.",)),
    (("batching", "a batch", "batch size", "the batch size", "a batch of requests"),
     ("Batching means that the model works on many requests in the same step. "
      "The weights are read once for all of them, so each token becomes cheaper.",)),
    (("a prefix cache", "prefix caching", "the prefix cache", "prompt caching", "a prompt cache",
      "automatic prefix caching"),
     ("A prefix cache keeps the KV cache of prompts that were read before. When a new prompt "
      "starts with the same text, that part is not computed again, so the first token comes "
      "sooner.",)),
    (("disaggregated serving", "disaggregation", "prefill-decode disaggregation",
      "PD disaggregation", "disaggregated inference", "splitting prefill and decode",
      "disaggregated prefill"),
     ("Disaggregated serving runs prefill and decode on different workers. The KV cache is moved "
      "from the prefill worker to the decode worker, and each stage can be scaled on its own.",)),
    (("a handoff", "the handoff", "KV transfer", "the KV transfer", "KV cache transfer",
      "the KV handoff"),
     ("The handoff moves a request from the prefill worker to the decode worker. The KV cache of "
      "the prompt is copied over, and decode goes on from there.",)),
    (("a prefill worker", "the prefill worker", "prefill workers"),
     ("A prefill worker reads prompts and fills the KV cache. Then it hands the cache over to a "
      "decode worker.",)),
    (("a decode worker", "the decode worker", "decode workers"),
     ("A decode worker takes the KV cache from a prefill worker and writes the answer token by "
      "token.",)),
    (("a worker", "workers", "a worker process", "the worker"),
     ("A worker is a process that runs one engine. In Tokenmill a worker does prefill, decode, or "
      "both.",)),
    (("the router", "a router", "routing", "request routing", "KV-aware routing",
      "cache-aware routing"),
     ("The router chooses the worker for each request. It looks at how busy the workers are and "
      "which of them already holds the start of the prompt in its cache.",)),
    (("the frontend", "a frontend", "the front end", "the HTTP frontend"),
     ("The frontend is the front door of Tokenmill. It takes HTTP requests, turns the text into "
      "tokens, asks the router for a worker, and streams the answer back.",)),
    (("the planner", "a planner", "autoscaling", "the Tokenmill planner"),
     ("The planner watches the load and decides how many workers each stage needs. "
      "It can advise you or scale the stages by itself.",)),
    (("an LLM", "a large language model", "LLMs", "a language model", "large language models"),
     ("An LLM is a large language model. It is a neural network that reads text and predicts the "
      "next token, again and again, until the answer is complete.",)),
    (("inference", "LLM inference", "model inference", "LLM serving", "model serving",
      "an inference server"),
     ("Inference means running a trained model to get answers. For a language model it has two "
      "stages: prefill reads the prompt, and decode writes the answer.",)),
    (("attention", "self-attention", "the attention mechanism", "attention in a transformer"),
     ("Attention lets a model look back at earlier tokens and decide which of them matter for the "
      "next one. Its keys and values are what the KV cache stores.",)),
    (("a transformer", "transformers", "the transformer", "a transformer model"),
     ("A transformer is a neural network built from layers of attention and feed-forward blocks. "
      "Most language models are transformers.",)),
    (("throughput", "token throughput", "tokens per second"),
     ("Throughput is the number of tokens that a system produces per second. "
      "Larger batches raise it, but they can make each request slower.",)),
    (("latency", "request latency", "tail latency", "p99 latency"),
     ("Latency is the time that a user waits. For a language model it has two parts: the time to "
      "the first token, and the time between tokens.",)),
    (("goodput", "the goodput"),
     ("Goodput counts only the requests or tokens that were served within the promised latency.",)),
    (("an SLO", "SLOs", "a service level objective", "a service level", "SLO"),
     ("An SLO is a service level objective. It says how fast answers should be, for example: the "
      "first token within 500 milliseconds for 95 percent of the requests.",)),
    (("a GPU", "GPUs", "a graphics card", "the GPU"),
     ("A GPU is a processor that does many simple calculations at the same time. "
      "Language models run on GPUs because they need very many multiplications.",)),
    (("a prompt", "the prompt", "prompts", "prompting"),
     ("A prompt is the text that you send to a language model. The model reads it during prefill "
      "and then writes the answer.",)),
    (("a context window", "the context window", "context length", "the context length"),
     ("The context window is the largest number of tokens that a model can look at, counting the "
      "prompt and the answer together.",)),
    (("temperature", "sampling temperature", "the temperature", "the temperature setting"),
     ("Temperature controls how random the answer is. At 0 the model always takes the most likely "
      "token. Higher values give more variety.",)),
    (("sampling", "token sampling", "top-p sampling", "top-k sampling", "top p", "top k"),
     ("Sampling is how the next token is picked from the probabilities that the model gives. "
      "Top-k and top-p leave out the unlikely tokens first.",)),
    (("greedy decoding", "greedy sampling", "greedy search"),
     ("Greedy decoding always takes the most likely next token. The same prompt then always gives "
      "the same answer.",)),
    (("speculative decoding", "speculation", "a draft model"),
     ("In speculative decoding a small model guesses several tokens ahead, and the large model "
      "checks them in one step. Right guesses save time.",)),
    (("paged attention", "PagedAttention", "a KV block", "KV blocks", "a block table"),
     ("Paged attention stores the KV cache in small blocks of equal size. A request takes blocks "
      "as it grows, so little memory is wasted.",)),
    (("chunked prefill", "prefill chunking", "a prefill chunk"),
     ("Chunked prefill reads a long prompt in several pieces, so that other requests can go on "
      "decoding in between.",)),
    (("quantization", "a quantized model", "model quantization", "FP8", "int8 quantization"),
     ("Quantization stores the numbers of a model with fewer bits. The model needs less memory and "
      "runs faster, with a small loss of quality.",)),
    (("tensor parallelism", "TP", "model parallelism"),
     ("Tensor parallelism splits each layer of a model over several GPUs, which work on the same "
      "token together.",)),
    (("streaming", "token streaming", "SSE", "server-sent events", "a streamed response"),
     ("Streaming sends each piece of the answer as soon as it is ready, so you can read along "
      "while the model is still writing.",)),
    (("a chat template", "the chat template", "chat templates"),
     ("A chat template turns a list of messages into one text for the model. It marks who said "
      "what with special tokens.",)),
    (("the OpenAI API", "an OpenAI-compatible API", "the chat completions API",
      "the chat completions endpoint"),
     ("It is an HTTP interface for language models: you send a list of messages and get the answer "
      "back. Tokenmill offers it, so existing clients work without changes.",)),
    (("backpressure", "admission control", "load shedding"),
     ("Admission control decides which requests may enter when the system is full. It is better to "
      "say no early than to make everyone wait.",)),
    (("preemption", "request preemption", "an evicted request"),
     ("Preemption takes a running request off the GPU for a while, to free memory for others. "
      "It goes on later and gives the same answer.",)),
    (("weights", "model weights", "parameters", "model parameters", "a parameter"),
     ("The weights are the numbers that a model learned in training. "
      "They are read at every step and stay the same for all requests.",)),
    (("the simulator", "a simulation", "tokenmill simulate", "simulation in Tokenmill"),
     ("The simulator runs a factory on a virtual clock. It uses the same router, scheduler and "
      "planner as the real system, so you can try a setup before you pay for GPUs.",)),
    (("tokenmill serve", "the serve command"),
     ("The command tokenmill serve starts a frontend and workers on one machine. "
      "Without a model name it serves me, the small model that comes with the package.",)),
    (("a factory file", "the factory file", "factory.yaml", "a Tokenmill factory", "a factory"),
     ("A factory file is a YAML file that describes the model, the stages, the number of workers "
      "and the promised latency. Tokenmill runs it or simulates it.",)),
    (("Tokenmill", "TokenMill", "tokenmill", "the Tokenmill project", "this project",
      "token mill"),
     ("Tokenmill is an inference factory for large language models. It runs prefill and decode on "
      "separate workers, moves the KV cache between them, and scales each stage on its own.",
      "Tokenmill is software that serves large language models. It splits the work into prefill "
      "and decode, and each stage runs on its own workers.")),
)  # fmt: skip

# (questions, answers) for what doesn't fit "what is ..."
PAIRS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Why split prefill and decode?", "Why separate prefill and decode?",
      "Why do you split prefill and decode?", "Why run prefill and decode on different workers?",
      "Why run prefill and decode separately?", "Why should I split prefill from decode?",
      "Why is disaggregation useful?", "Why disaggregate?", "Why use disaggregated serving?",
      "What is the benefit of disaggregation?", "Why are prefill and decode separated?",
      "What is the advantage of splitting prefill and decode?", "When does disaggregation help?",
      "What do I gain by separating prefill and decode?", "What is the point of disaggregation?"),
     ("Prefill needs compute and decode needs memory bandwidth. On separate workers they do not "
      "slow each other down, and each can use the hardware and the scale that fits it.",)),
    (("What is the difference between prefill and decode?", "How do prefill and decode differ?",
      "How is prefill different from decode?", "Compare prefill and decode.",
      "prefill vs decode", "Explain prefill and decode.", "What are prefill and decode?",
      "What are the two stages of inference?", "What stages does a request go through?",
      "Describe the difference between prefill and decode."),
     ("Prefill reads the whole prompt in one go and is limited by compute. Decode writes the "
      "answer one token at a time and is limited by memory bandwidth.",)),
    (("Why is a KV cache useful?", "Why do we need a KV cache?", "Why use a KV cache?",
      "What is the KV cache good for?", "What does the KV cache do?", "Why is the KV cache needed?",
      "How does a KV cache help?", "Why does the KV cache matter?",
      "How does the KV cache speed up decoding?", "What is stored in the KV cache?",
      "What does a KV cache store?", "How does a KV cache work?", "How does KV caching work?"),
     ("The KV cache holds the keys and values of all tokens so far. Each new token looks them up "
      "there, so the model does not have to read the whole prompt again.",)),
    (("How large is the KV cache?", "How big is a KV cache?",
      "How much memory does the KV cache use?",
      "How much memory does a KV cache need?", "Does the KV cache grow?",
      "Why does the KV cache need so much memory?"),
     ("The KV cache grows with every token. Its size depends on the number of layers, the size of "
      "the keys and values, and the length of the context.",)),
    (("What happens when the KV cache is full?", "What if the KV cache runs out of memory?",
      "What happens if there is no room in the KV cache?"),
     ("Then new requests have to wait, or a running one is taken out and continued later. "
      "Old cached prefixes are dropped first.",)),
    (("How can I see that the KV cache arrived?", "How do you show that the KV cache was moved?",
      "How can I test the KV transfer?", "How do I know that the KV cache was transferred?",
      "Why do you repeat code words?", "Why a code word?", "What is the code word test?"),
     ("Give me a code word in the prompt and ask for it later. The decode worker can only repeat "
      "it if the KV cache of the prompt has arrived.",)),
    (("How do I start Tokenmill?", "How do I run Tokenmill?", "How do I use Tokenmill?",
      "How can I start a server?", "How do I serve a model?", "How do I get started?",
      "How do I start the server?", "How can I try Tokenmill?", "How to run tokenmill?"),
     ("Run the command tokenmill serve. It starts a frontend and workers on your machine and "
      "prints the address when they are ready.",)),
    (("How do I install Tokenmill?", "How can I install tokenmill?", "Where do I get Tokenmill?",
      "How to install Tokenmill?", "How do I get Tokenmill?"),
     ("Install it with pip install tokenmill. You need no cluster and no GPU to try it.",)),
    (("Does Tokenmill need a GPU?", "Do I need a GPU?", "Can Tokenmill run on a CPU?",
      "Can I run this without a GPU?", "Does it work on a laptop?", "Can I run it on my laptop?"),
     ("No, you can try Tokenmill on a CPU with the small model that comes with it. "
      "For large models you need GPUs.",)),
    (("How does Tokenmill work?", "How does tokenmill serve a request?",
      "What happens to a request?", "Explain how Tokenmill works.",
      "What happens when I send a request?", "How is a request served?",
      "How is my question answered?", "What does Tokenmill do?", "What can Tokenmill do?",
      "What is Tokenmill good for?"),
     ("A request comes in at the frontend. A prefill worker reads the prompt and fills the KV "
      "cache, a decode worker takes the cache over and writes the answer.",)),
    (("Who made Tokenmill?", "Who wrote Tokenmill?", "Who created Tokenmill?",
      "Who develops Tokenmill?", "Who is behind Tokenmill?"),
     ("Tokenmill is made by the authors of the Tokenmill project.",)),
    (("Is Tokenmill open source?", "What is the license of Tokenmill?", "Is Tokenmill free?",
      "Which license does Tokenmill have?", "Can I use Tokenmill for free?"),
     ("Yes, Tokenmill is open source under the Apache 2.0 license.",)),
    (("What language is Tokenmill written in?", "Is Tokenmill written in Python?",
      "In which language is Tokenmill written?", "What is Tokenmill written in?"),
     ("Tokenmill is written in Python.",)),
    (("How can I make the first token faster?", "How do I reduce TTFT?", "How to lower TTFT?",
      "What makes TTFT high?", "Why is the first token slow?", "How can I improve TTFT?",
      "Why does the first token take so long?"),
     ("The first token has to wait for the queue and for prefill. More prefill workers, shorter "
      "prompts and a prefix cache make it come sooner.",)),
    (("How can I make decode faster?", "How do I reduce inter-token latency?",
      "Why is decode slow?", "How to improve ITL?", "Why does decode write one token at a time?",
      "How can I speed up decoding?", "Why is decode limited by memory?"),
     ("Every decode step reads the weights and the KV cache once. Faster memory, smaller batches "
      "or a quantized model make each step shorter.",)),
    (("How do I scale Tokenmill?", "How can I add more workers?", "How do I scale prefill?",
      "How do I scale decode?", "How does Tokenmill scale?", "How can I scale each stage?",
      "When do I need more prefill workers?", "When do I need more decode workers?"),
     ("Each stage scales on its own. Add prefill workers when the first token is late, and decode "
      "workers when the tokens after it are slow.",)),
    (("Why are batches good?", "Why does batching help?", "Why use continuous batching?",
      "How does continuous batching work?", "Why is batching faster?"),
     ("In a batch the weights are read once for many requests. With continuous batching, requests "
      "join and leave after every step, so the GPU is always busy.",)),
    (("Which engines does Tokenmill support?", "Does Tokenmill work with vLLM?",
      "Can I use vLLM?", "Does Tokenmill support SGLang?", "What engines can I use?",
      "Which engine do you use?"),
     ("Tokenmill has its own small engine and a simulated one, and it can also drive engines such "
      "as vLLM and SGLang.",)),
    (("How much does a token cost?", "What does a token cost?", "How much does it cost?",
      "How is the cost of a token computed?"),
     ("The cost of a token is the price of the GPUs per second divided by the tokens that they "
      "produce per second.",)),
    (("When does disaggregation not help?", "Is disaggregation always better?",
      "Is splitting always better?", "When should I not split prefill and decode?",
      "What are the drawbacks of disaggregation?"),
     ("Not always. Moving the KV cache takes time, so with short prompts or little load one worker "
      "that does both stages can be better. Tokenmill compares both.",)),
    (("Why is it called Tokenmill?", "What does the name Tokenmill mean?",
      "Where does the name Tokenmill come from?", "Why the name Tokenmill?"),
     ("A mill turns grain into flour. Tokenmill turns prompts into tokens.",)),
)  # fmt: skip
