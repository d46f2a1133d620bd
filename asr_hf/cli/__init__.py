"""The console command asr-hf: parse, call one function, print."""
