"""The methods; importing this package registers them. A new method is one file here and one line below."""

from studio.adapters.methods.dora import DoRA as DoRA
from studio.adapters.methods.ia3 import IA3 as IA3
from studio.adapters.methods.lokr import LoKr as LoKr
from studio.adapters.methods.lora import LoRA as LoRA
