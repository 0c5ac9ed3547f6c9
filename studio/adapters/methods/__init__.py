"""The methods; importing this package registers them. A new method is one file here and one line below."""

from studio.adapters.methods.adalora import AdaLoRA as AdaLoRA
from studio.adapters.methods.bitfit import BitFit as BitFit
from studio.adapters.methods.boft import BOFT as BOFT
from studio.adapters.methods.bottleneck import Bottleneck as Bottleneck
from studio.adapters.methods.deltalora import DeltaLoRA as DeltaLoRA
from studio.adapters.methods.dora import DoRA as DoRA
from studio.adapters.methods.fourierft import FourierFT as FourierFT
from studio.adapters.methods.hra import HRA as HRA
from studio.adapters.methods.ia3 import IA3 as IA3
from studio.adapters.methods.lntuning import LNTuning as LNTuning
from studio.adapters.methods.loha import LoHa as LoHa
from studio.adapters.methods.lokr import LoKr as LoKr
from studio.adapters.methods.lora import LoRA as LoRA
from studio.adapters.methods.miss import MiSS as MiSS
from studio.adapters.methods.mora import MoRA as MoRA
from studio.adapters.methods.multitaskprompt import MultitaskPrompt as MultitaskPrompt
from studio.adapters.methods.oft import OFT as OFT
from studio.adapters.methods.prefixtuning import PrefixTuning as PrefixTuning
from studio.adapters.methods.prompttuning import PromptTuning as PromptTuning
from studio.adapters.methods.ptuning import PTuning as PTuning
from studio.adapters.methods.qalora import QALoRA as QALoRA
from studio.adapters.methods.randlora import RandLoRA as RandLoRA
from studio.adapters.methods.road import RoAd as RoAd
from studio.adapters.methods.shira import SHiRA as SHiRA
from studio.adapters.methods.tokenembedding import TokenEmbedding as TokenEmbedding
from studio.adapters.methods.vera import VeRA as VeRA
