"""Static merges: a recipe as mergekit has it, written to a folder, and a library's specialists merged in memory.

python examples/merge_models.py [LIBRARY]
"""

from pathlib import Path
from tempfile import mkdtemp

from small import opened

from asterism import merge, merge_recipe

library, _ = opened()
out = Path(mkdtemp(prefix="asterism-merge-"))

models = [{"model": str(library.folder(name)), "parameters": {"weight": 0.5}} for name in library.names]
recipe = {
    "merge_method": "ties",
    "base_model": str(library.folder()),
    "models": models,
    "parameters": {"density": [{"filter": "mlp", "value": [0.2, 0.5]}, {"value": 0.4}]},  # MLPs from the first layer to the last; the rest
}
told = merge_recipe(recipe, out / "ties")
for source in told["sources"]:
    print(f"{Path(source['model']).name}: {source['distance']:.2%} away from the merge")

for method, parameters in {"task_arithmetic": {"lambda_": 0.3}, "dare_ties": {"density": 0.5}, "model_stock": {}}.items():
    model = merge(library, method, **parameters)  # a live transformers model, of the library's dtype
    print(f"{method}: {model.num_parameters():,} parameters")
