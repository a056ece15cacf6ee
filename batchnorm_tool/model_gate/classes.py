"""The Keras classes that a stored model may name: they compute, and load or run nothing else.

Of Keras 3.15's and Keras 2's public names; what Keras adds later is refused until it stands here.
"""

from __future__ import annotations

UNSAFE_CLASSES = {
    "Lambda": "a Lambda layer, which runs Python code that lies in the file",
    "__lambda__": "a Python lambda, which runs code that lies in the file",
    "__typespec__": "a serialized type of TensorFlow",
    "TFSMLayer": "a TFSMLayer, which loads a SavedModel from somewhere else",
    "TorchModuleWrapper": "a TorchModuleWrapper, which unpickles code",
    "FlaxLayer": "a FlaxLayer, which runs Python code that lies in the file",
    "JaxLayer": "a JaxLayer, which runs Python code that lies in the file",
}

DROPOUT_CLASSES = frozenset(
    {"AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"}
    | {"SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}
)

MODELS = frozenset({"Functional", "Model", "Sequential"})

LAYERS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BatchNormalization
    BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding CenterCrop
    Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
    Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D
    Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU
    GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization GroupQueryAttention GroupedQueryAttention HashedCrossing Hashing Identity
    InputLayer IntegerLookup LSTM LSTMCell LayerNormalization LeakyReLU Masking
    MaxNumBoundingBoxes MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum MelSpectrogram Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute
    Pipeline RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration
    RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip
    RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective
    RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
    ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D SeparableConvolution1D
    SeparableConvolution2D SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells StringLookup Subtract
    TextVectorization ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D
    UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()  # noqa: SIM905  a list of quoted words would be three pages
)

# What stands in a file of Keras 2 for a call of a TensorFlow function; Keras 3 has no such layers.
KERAS_2_CLASSES = frozenset(
    {"ClassMethod", "InstanceMethod", "InstanceProperty", "SlicingOpLambda", "TFOpLambda"}
    | {"TensorFlowOpLayer"}
)

POLICIES = frozenset(
    """
    AWQDTypePolicy DTypePolicy DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy
    Policy QuantizedDTypePolicy QuantizedFloat8DTypePolicy
    """.split()  # noqa: SIM905
)

# Initializers, regularizers and constraints, by which files of Keras 2 go without a module.
_SMALL_OBJECTS = frozenset(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer L1 L1L2 L2
    LecunNormal LecunUniform MaxNorm MinMaxNorm NonNeg Ones Orthogonal OrthogonalInitializer
    OrthogonalRegularizer RadialConstraint RandomNormal RandomUniform STFT TruncatedNormal UnitNorm
    VarianceScaling Zeros
    """.split()  # noqa: SIM905
)

LEGACY_NAMES = LAYERS | MODELS | POLICIES | _SMALL_OBJECTS

MODULE_CLASSES = {
    "keras": MODELS | POLICIES | {"KerasTensor"},
    "keras.models": MODELS,
    "keras.layers": LAYERS,
    "keras.dtype_policies": POLICIES,
    "keras.mixed_precision": POLICIES,
    "keras.src.applications.convnext": frozenset({"LayerScale", "StochasticDepth"}),
    "keras.src.layers.preprocessing.feature_space": frozenset({"TFDConcat", "TFDIdentity"}),
    "keras.src.applications.inception_resnet_v2": frozenset({"CustomScaleLayer"}),
    "keras.random": frozenset({"SeedGenerator"}),
    "keras.src.random.seed_generator": frozenset({"SeedGenerator"}),
}

# Whatever these modules hold only computes.
HARMLESS_MODULES = frozenset(
    {
        "keras.activations",
        "keras.constraints",
        "keras.initializers",
        "keras.losses",
        "keras.metrics",
        "keras.optimizers",
        "keras.optimizers.schedules",
        "keras.quantizers",
        "keras.regularizers",
    }
)

OP_MODULES = frozenset(
    {
        "keras.src.ops.einops",
        "keras.src.ops.image",
        "keras.src.ops.linalg",
        "keras.src.ops.math",
        "keras.src.ops.nn",
        "keras.src.ops.numpy",
        "keras.src.ops.core",
    }
)

FUNCTION_MODULES = frozenset(
    {"builtins", "keras.ops", "keras.ops.image", "keras.ops.linalg", "keras.ops.nn"}
    | {"keras.ops.numpy"}
    | HARMLESS_MODULES
)

# They look up a class or function by what they are given, wherever they stand.
LOOKUPS = frozenset({"deserialize", "get", "serialize"})

# Nobody's own classes come from these.
FOREIGN_PACKAGES = frozenset({"h5py", "keras", "numpy", "tensorflow", "tf_keras"})
