"""The fourteen hazards of Llama Guard 3: the MLCommons taxonomy (arXiv:2404.12241) and code-interpreter abuse."""

# as the model card names them, for people
HAZARDS: dict[str, str] = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex-Related Crimes",
    "S4": "Child Sexual Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Suicide & Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}

# as the prompt names them that Llama Guard 3 was trained on: three keep the names of Llama Guard 2
PROMPT_HAZARDS: dict[str, str] = HAZARDS | {"S3": "Sex Crimes", "S4": "Child Exploitation", "S11": "Self-Harm"}
