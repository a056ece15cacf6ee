"""The protobuf messages that the gate looks into, declared without TensorFlow and ONNX.

Names and numbers are those of TensorFlow's ``saved_model.proto``, ``meta_graph.proto``,
``graph.proto``, ``function.proto``, ``op_def.proto``, ``node_def.proto`` and ``attr_value.proto``,
and those of ``onnx-ml.proto``, with ``Onnx`` before the name; they never change. What the gate does
not look into (tensors, shapes) is declared as bytes. So is every list of messages: they are counted
before they are parsed one by one, because two bytes of a file become a hundred in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

_PACKAGE = "batchnorm_tool"
_LIST = "List"
_BATCH_BYTES = 1 << 18
_PIECE_BYTES = 100  # what an empty one costs in memory, about
# One message a line: its fields as number:type:name, `*` for a repeated one, `|` for one of several
# of which a message holds one at most.
_MESSAGES = """
SavedModel 1:int64:saved_model_schema_version 2:bytes*:meta_graphs
MetaGraphDef 1:MetaInfoDef:meta_info_def 2:GraphDef:graph_def 3:SaverDef:saver_def
    4:bytes*:collection_def 5:bytes*:signature_def 6:bytes*:asset_file_def 7:bytes:object_graph_def
MetaInfoDef 1:string:meta_graph_version 2:bytes:stripped_op_list 3:bytes:any_info 4:string*:tags
    5:string:tensorflow_version 6:string:tensorflow_git_version 7:bool:stripped_default_attrs
    8:bytes*:function_aliases
SaverDef 1:string:filename_tensor_name 2:string:save_tensor_name 3:string:restore_op_name
    4:int32:max_to_keep 5:bool:sharded 6:float:keep_checkpoint_every_n_hours 7:int32:version
CollectionEntry 1:string:key 2:CollectionDef:value
CollectionDef 1:Names|:node_list 2:bytes|:bytes_list 3:bytes|:int64_list 4:bytes|:float_list
    5:Pieces|:any_list
Names 1:string*:value
Pieces 1:bytes*:value
Any 1:string:type_url 2:bytes:value
SignatureEntry 1:string:key 2:SignatureDef:value
SignatureDef 1:bytes*:inputs 2:bytes*:outputs 3:string:method_name 4:bytes*:defaults
TensorInfoEntry 1:string:key 2:TensorInfo:value
TensorInfo 1:string|:name 4:SparseInfo|:coo_sparse 5:CompositeInfo|:composite_tensor 2:int32:dtype
    3:bytes:tensor_shape
SparseInfo 1:string:values_tensor_name 2:string:indices_tensor_name
    3:string:dense_shape_tensor_name
CompositeInfo 1:bytes:type_spec 2:bytes*:components
AssetFileDef 1:TensorInfo:tensor_info 2:string:filename
GraphDef 1:bytes*:node 2:FunctionDefLibrary:library 3:int32:version 4:bytes:versions
    5:bytes:debug_info
FunctionDefLibrary 1:bytes*:function 2:bytes*:gradient 3:bytes*:registered_gradients
FunctionDef 1:OpDef:signature 3:bytes*:node_def 4:bytes*:ret 5:bytes*:attr 6:bytes*:control_ret
    7:bytes*:arg_attr 8:bytes*:resource_arg_unique_id
OpDef 1:string:name 2:bytes*:input_arg 3:bytes*:output_arg 4:bytes*:attr 5:string:summary
    6:string:description 8:bytes:deprecation 16:bool:is_aggregate 17:bool:is_stateful
    18:bool:is_commutative 19:bool:allows_uninitialized_input 20:string*:control_output
    21:bool:is_distributed_communication
ArgDef 1:string:name 2:string:description 3:int32:type 4:string:type_attr 5:string:number_attr
    6:string:type_list_attr 7:bytes*:handle_data 16:bool:is_ref 17:bytes:experimental_full_type
LargeNode 1:string:name 2:string:op 3:string*:input 4:string:device 5:bytes*:attr
    6:bytes:experimental_debug_info 7:bytes:experimental_type
NodeDef 1:string:name 2:string:op 3:string*:input 4:string:device 5:AttrEntry*:attr
    6:bytes:experimental_debug_info 7:bytes:experimental_type
Entry 1:string:key 2:bytes:value
AttrEntry 1:string:key 2:AttrValue:value
AttrValue 1:ListValue|:list 2:bytes|:s 3:int64|:i 4:float|:f 5:bool|:b 6:int32|:type
    7:bytes|:shape 8:bytes|:tensor 9:string|:placeholder 10:NameAttrList|:func
ListValue 2:bytes*:s 3:bytes:i 4:bytes:f 5:bytes:b 6:bytes:type 7:bytes*:shape 8:bytes*:tensor
    9:NameAttrList*:func
NameAttrList 1:string:name 2:AttrEntry*:attr
TensorProto 1:int32:dtype 2:bytes:tensor_shape 8:bytes*:string_val
TensorShapeProto 2:Dim*:dim 3:bool:unknown_rank
Dim 1:int64:size 2:string:name
OnnxModel 1:int64:ir_version 2:bytes:producer_name 3:bytes:producer_version 4:bytes:domain
    5:int64:model_version 6:bytes:doc_string 7:OnnxGraph:graph 8:bytes*:opset_import
    14:bytes*:metadata_props 20:bytes*:training_info 25:bytes*:functions 26:bytes*:configuration
OnnxOpset 1:string:domain 2:int64:version
OnnxFunction 1:string:name 4:bytes*:input 5:bytes*:output 6:bytes*:attribute 7:bytes*:node
    8:bytes:doc_string 9:bytes*:opset_import 10:string:domain 11:bytes*:attribute_proto
    12:bytes*:value_info 13:string:overload 14:bytes*:metadata_props
OnnxGraph 1:bytes*:node 2:bytes:name 5:bytes*:initializer 10:bytes:doc_string 11:bytes*:input
    12:bytes*:output 13:bytes*:value_info 14:bytes*:quantization_annotation
    15:bytes*:sparse_initializer 16:bytes*:metadata_props
OnnxNode 1:string*:input 2:string*:output 3:string:name 4:string:op_type 5:bytes*:attribute
    6:bytes:doc_string 7:string:domain 8:string:overload 9:bytes*:metadata_props
    10:bytes*:device_configurations
OnnxAttribute 1:string:name 2:float:f 3:int64:i 4:bytes:s 5:OnnxTensor:t 6:OnnxGraph:g
    7:float*:floats 8:int64*:ints 9:bytes*:strings 10:bytes*:tensors 11:bytes*:graphs
    13:bytes:doc_string 14:bytes:tp 15:bytes*:type_protos 20:int32:type 21:string:ref_attr_name
    22:OnnxSparseTensor:sparse_tensor 23:bytes*:sparse_tensors
OnnxSparseTensor 1:OnnxTensor:values 2:OnnxTensor:indices 3:int64*:dims
OnnxTensor 1:int64*:dims 2:int32:data_type 3:bytes:segment 4:bytes:float_data 5:bytes:int32_data
    6:bytes*:string_data 7:bytes:int64_data 8:string:name 9:bytes:raw_data 10:bytes:double_data
    11:bytes:uint64_data 12:bytes:doc_string 13:bytes*:external_data 14:int32:data_location
    16:bytes*:metadata_props
OnnxValue 1:string:name 2:OnnxType:type 3:bytes:doc_string 4:bytes*:metadata_props
OnnxType 1:OnnxTensorType|:tensor_type 4:bytes|:sequence_type 5:bytes|:map_type 6:bytes:denotation
    7:bytes|:opaque_type 8:bytes|:sparse_tensor_type 9:bytes|:optional_type
OnnxTensorType 1:int32:elem_type 2:OnnxShape:shape
OnnxShape 1:bytes*:dim
OnnxDim 1:int64|:dim_value 2:bytes|:dim_param 3:bytes:denotation
"""


def parse(name: str, content: bytes) -> Any:
    """Return a message, if it holds nothing twice and nothing unknown."""
    try:
        message = message_class(name).FromString(content)
    except DecodeError as error:
        raise ValueError(f"it is truncated, or its {name} is damaged") from error
    # Protobuf merges what is given twice and keeps what it does not know. Neither survives being
    # written again, so that the size tells.
    message.DiscardUnknownFields()
    if message.ByteSize() != len(content):
        raise ValueError(f"its {name} has duplicate or unknown fields")
    return message


def parse_all(name: str, pieces: Sequence[bytes]) -> Iterator[Any]:
    """Yield messages of one kind."""
    # Many at a time: parsing them one by one takes five times as long.
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > _BATCH_BYTES:
            yield from _parse_batch(name, batch)
            batch, size = [], 0
        batch.append(piece)
        size += len(piece) + _PIECE_BYTES
    yield from _parse_batch(name, batch)


def _parse_batch(name: str, batch: list[bytes]) -> Any:
    content = message_class("Pieces")(value=batch).SerializeToString()
    return parse(f"{name}{_LIST}", content).item


@cache
def message_class(name: str) -> Any:
    """Return the class of a message."""
    return GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def _pool() -> DescriptorPool:
    """Return the messages, in a pool of their own: the common one holds TensorFlow's."""
    # They are declared as `proto2`, where a field that is given with its default value is kept.
    file = FileDescriptorProto(name="saved_model.proto", package=_PACKAGE, syntax="proto2")
    for line in filter(None, _MESSAGES.replace("\n    ", " ").split("\n")):
        name, *fields = line.split()
        _declare(file, name, fields)
        _declare(file, f"{name}{_LIST}", [f"1:{name}*:item"])
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _declare(file: FileDescriptorProto, name: str, fields: Iterable[str]) -> None:
    message = file.message_type.add(name=name)
    for number, kind, field in (item.split(":") for item in fields):
        added = message.field.add(name=field, number=int(number))
        added.label = added.LABEL_REPEATED if kind.endswith("*") else added.LABEL_OPTIONAL
        _set_type(added, kind.rstrip("*|"))
        if kind.endswith("|"):
            added.oneof_index = 0
            if not message.oneof_decl:
                message.oneof_decl.add(name="kind")


def _set_type(field: FieldDescriptorProto, kind: str) -> None:
    if kind[0].islower():
        field.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
