"""The colours of start-up phases, in reports and on the status page."""

# One colour a phase, in the order of a start.
COLOURS = {
    "placement": "#b8c4d6", "compile ahead": "#e0836b", "process": "#93a5bf", "model files": "#d9b44a",
    "import": "#6f86a8", "plan": "#4d6891",
    "cache lookup": "#2a9d8f", "cache wait": "#1f7a70", "fetch": "#3fb8a8", "install": "#63cdbf",
    "model transfer": "#c99a2e",
    "engine process": "#c8b6e2", "worker process": "#a98fd1", "device setup": "#8a6abf",
    "weights": "#e9c46a", "profile setup": "#f4d58d", "dynamo": "#e76f51", "inductor": "#c8553d",
    "artifact load": "#52b788", "profiling": "#f4a261", "graph capture": "#d4a373", "kv cache": "#ddb892",
    "handshake": "#adb5bd", "first token": "#343a40",
}  # fmt: skip
