"""Recipes as people write them for mergekit: each of its documented forms once, on made-up names."""

LINEAR = """
models:
  - model: org/one
    parameters: {weight: 1.0}
  - model: org/two@main
    parameters: {weight: 0.3}
merge_method: linear
dtype: float16
"""
TIES = """
models:
  - model: org/one
    parameters:
      density: [1, 0.7, 0.1]  # density gradient
      weight: 1.0
  - model: org/two
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]  # weight gradient
  - model: org/three
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""
SLERP = """
slices:
  - sources:
      - model: org/one
        layer_range: [0, 3]
      - model: org/two
        layer_range: [0, 3]
merge_method: slerp
base_model: org/one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5  # fallback for rest of tensors
dtype: bfloat16
"""
STACKED = """
slices:
  - sources:
    - model: org/one
      layer_range: [0, 2]
  - sources:
    - model: org/two
      layer_range: [1, 3]
merge_method: passthrough
dtype: float16
"""
SCALED = """
slices:
  - sources:
    - model: org/one
      layer_range: [0, 2]
      parameters:
        scale:
          - {filter: o_proj, value: 0.5}
          - {filter: down_proj, value: 0.0}
          - {value: 1.0}
  - sources:
    - model: org/one
      layer_range: [1, 3]
merge_method: passthrough
"""
LEVELS = """
slices:
  - sources:
    - {model: org/base, layer_range: [0, 1]}
    - {model: org/one, layer_range: [0, 1], parameters: {weight: 0.9}}
    - {model: org/two, layer_range: [0, 1]}
    parameters: {weight: 0.4, lambda: 0.5}
  - sources:
    - {model: org/two, layer_range: [1, 3], parameters: {weight: [0.1, 0.2], density: 0.25}}
    - {model: org/base, layer_range: [0, 2]}
    - {model: org/one, layer_range: [1, 3]}
merge_method: dare_ties
base_model: org/base
parameters: {weight: [0.6, 0.8], density: "5e-1"}
"""
MODULE = """
modules:
  default:
    models:
      - {model: org/one, parameters: {weight: 0.2, epsilon: 0.05}}
      - {model: org/base}
      - model: {model: {path: org/two, revision: abc}}
        parameters: {density: [0.2, 0.6]}
    parameters: {weight: [{filter: q_proj, value: 0.7}], normalize: false}
merge_method: della
base_model: org/base
parameters: {weight: 0.1, density: 0.4}
out_dtype: float32
"""
BASELESS = """
models:
  - {model: org/one, parameters: {weight: 0.75}}
  - {model: org/two, parameters: {weight: 0.25}}
merge_method: nuslerp
parameters: {nuslerp_flatten: [false, true]}
dtype: torch.float64
out_dtype: bfloat16
"""
BASED = """
models:
  - model: org/one
  - model: org/two
merge_method: linear
base_model: org/base
parameters: {weight: [{filter: norm, value: 1}, {value: [2, 4, 1]}]}
"""
STOCK = """
models:
  - model: org/base
  - model: org/one
  - model: org/two
merge_method: model_stock
base_model: org/base
"""
ALL = {
    "linear": LINEAR,
    "ties": TIES,
    "slerp": SLERP,
    "stacked": STACKED,
    "scaled": SCALED,
    "levels": LEVELS,
    "module": MODULE,
    "baseless": BASELESS,
    "based": BASED,
    "stock": STOCK,
}
