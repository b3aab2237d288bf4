"""What headers are likely to hold: the preset dictionary of their deflate in files of version 3.

A change here makes such files unreadable. What is likeliest comes last.
"""

from __future__ import annotations

from typing import Final

WORDS: Final = (
    b'"KernelGrad"Unpool"Scatter"Convolve"Cumulative"Gather"Concat"Slice"PatchProject"dtypes"name""'
    b'float16"bfloat16"uint32"int32"bool"sign"log"pow"rsqrt"sqrt"neg"exp"erf"logistic"abs"min"sub""'
    b'b1"u1"u4"i4"f4"numbers."sketch."constant"srht"count"sparse"gaussian"sample"dct"pool"layers/"p'
    b'arams/batch_stats/Conv_0/BatchNorm_0/mean"var"embedding/pos_embedding/encoder/decoder/query/"'
    b'key/value/out/kernel"mlp/linear1/linear2/norm/scale",8,null,cell/dense_i/dense_h/kernel","sco'
    b'res/gates/input/output/embed/features/classifier/factors/core/weight"u"r"c"u_seed"r_seed""Sca'
    b'n",["MatMul",["Norm",1,"Softmax",1,"Transpose",1,[0,2,1]],["Affine",1,["Take",1,[[0,1,64]]],{'
    b'"in":[["Map",[2,1],"mul"],["Map",1,"tanh"],["Map",1,"sigmoid"],["Map",1,"gelu"],["Map",[4,1],'
    b'"add"],["Map",1,"relu"],["Reduce",1,"sum",[0,1],0.015625],["Dense",1,18,19]],[1]],{},[["stem/'
    b'conv/kernel",4,null,3,3,3,16],["stem/conv/bias",8,null,16],["blocks/0/first/conv/kernel",4,nu'
    b'll,3,3,16,16],["blocks/0/first/conv/bias",8,null,16],["blocks/0/second/conv/kernel",4,null,3,'
    b'3,16,32],["blocks/0/second/conv/bias",8,null,32],["blocks/1/shortcut/kernel",4,null,1,1,32,64'
    b'],["blocks/1/shortcut/bias",8,null,64],["blocks/0/depthwise/conv/kernel",4,null,3,3,1,64],["b'
    b'locks/0/pointwise/conv/kernel",4,null,1,1,64,64],["Conv",1,8,[[3,3],[2,2],[[0,1],[0,1]]],9],['
    b'"Conv",1,0,[[5,5],null,[[2,2],[2,2]]],1],["Conv",1,2,[[5,5]],3],[[[[[28,28,1]]],[["Pool",1,"s'
    b'um",[[2,2],[2,2]],0.25],["Conv",1,0,[[3,3],null,[[1,1],[1,1]]],1],["Map",1,"relu"],["Pool",1,'
    b'"max",[[2,2],[2,2]]],["Conv",1,2,[[3,3],null,[[1,1],[1,1]]],3],["Map",1,"relu"],["Pool",1,"ma'
    b'x",[[2,2],[2,2]]],["Dense",1,4,5]],[1]],{},[["conv1/kernel",4,null,3,3,1,12],["conv1/bias",8,'
    b'null,12],["conv2/kernel",4,null,3,3,12,24],["conv2/bias",8,null,24],["fc1/kernel",4,null,216,'
    b'10],["fc1/bias",8,null,10],["fc2/kernel",4,null,120,84],["fc2/bias",8,null,84],["params/Dense'
    b'_0/kernel",4,null,784,128],["params/Dense_0/bias",8,null,128],["layers/0/kernel",4,null,784,1'
    b'00],["layers/0/bias",8,null,100],["layers/2/kernel",4,null,100,32],["layers/2/bias",8,null,32'
    b'],["layers/4/kernel",4,null,32,10],["layers/4/bias",8,null,10]]][[[[[28,28]]],[["Project",1,['
    b'"srht",784,196,748488574],0.5],["Project",1,["pool",784,196,0,0,[["height",28],["width",28]]]'
    b',0.5],["Project",1,["dct",784,144,0,0,[["height",28],["width",28]]],0.4285714328289032],["Den'
    b'se",1,0,1],[[[[[784]]],[["Dense",1,0,1],["Map",1,"relu"],["Dense",1,2,3],["Map",1,"relu"],["D'
    b'ense",1,4,5]],[1]],{},[["hidden/0/kernel",4,null,784,64],["hidden/0/bias",8,null,64],["hidden'
    b'/1/kernel",4,null,64,32],["hidden/1/bias",8,null,32],["head/kernel",4,null,32,10],["head/bias'
    b'",8,null,10]]]'
)
