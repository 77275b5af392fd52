"""Programs of cells, as texts: two written out by hand, the others with the derivative that programs.py makes."""

from programs import derived

LSTM = """\
cell 1 my_lstm
inputs i f g o
recurrent i f g o
states h c
keep 4
forward
a i
a f
a g
a o
s c
sigmoid 0
sigmoid 1
tanh 2
sigmoid 3
mul 6 4
mul 5 7
add 9 10
tanh 11
mul 8 12
put new h 13
put new c 11
put keep 0 5
put keep 1 6
put keep 2 7
put keep 3 8
backward
k 0
k 1
k 2
k 3
s c
n c
g h
g c
tanh 5
mul 6 3
tanh_back 9 8
add 7 10
mul 11 2
sigmoid_back 12 0
mul 11 4
sigmoid_back 14 1
mul 11 0
tanh_back 16 2
mul 6 8
sigmoid_back 18 3
mul 11 1
put da i 13
put da f 15
put da g 17
put da o 19
put ds c 20"""
DECAY_GRU = """\
cell 1 decay_gru
inputs r z n
recurrent r z n
states h
step gamma
keep 4
operand
u gamma
s h
mul 0 1
put operand 2
forward
a r
a z
x n
r n
u gamma
s h
mul 4 5
sigmoid 0
sigmoid 1
mul 7 3
add 2 9
tanh 10
sub 6 11
mul 8 12
add 11 13
put new h 14
put keep 0 7
put keep 1 8
put keep 2 11
put keep 3 3
backward
k 0
k 1
k 2
k 3
u gamma
s h
g h
mul 4 5
sub 7 2
mul 6 8
sigmoid_back 9 1
mul 6 1
sub 6 11
tanh_back 12 2
mul 13 3
sigmoid_back 14 0
mul 13 0
mul 11 4
mul 11 5
put da r 15
put da z 10
put dx n 13
put dr n 16
put ds h 17
put du gamma 18
backward_operand
go
u gamma
s h
mul 0 1
mul 0 2
put ds h 3
put du gamma 4"""
IND_RNN = """\
cell 1 ind_rnn
inputs h
states h
vectors u
forward
x h
v u
s h
mul 1 2
add 0 3
relu 4
put new h 5
backward
n h
v u
s h
g h
relu_back 3 0
mul 4 1
mul 4 2
put dx h 4
put ds h 5
put dv u 6"""

# After Cho et al. 2014, the reset gate before the product, with a rate for every step.
INNER = derived(
    "cell 1 inner\ninputs r z n\nrecurrent r z n\nstates h\nvectors p\nstep rate:1",
    first="a r\ns h\nv p\nsigmoid 0\nmul 3 1\nadd 4 2\na z\nx n\nput inner 5\nput cross 0 3\n"
    "put cross 1 6\nput cross 2 7",
    forward="cross 1\ncross 2\ni\ns h\ncross 0\nu rate\nsigmoid 0\nadd 1 2\ntanh 7\nsub 3 8\nmul 6 9\nadd 8 10\n"
    "mul 4 5\nmul 12 11\nadd 11 13\nput new h 14",
)  # fmt: skip
# Only a product inside the step, of an operand with an operand: the first product has no gates.
INNER_ALONE = derived(
    "cell 1 inner_alone\ninputs n\nrecurrent n\nstates h",
    first="s h\ntanh 0\nx n\nput inner 1\nput cross 0 2",
    forward="cross 0\ni\ns h\nadd 0 1\ntanh 3\nadd 4 2\nconst 0.5\nmul 5 6\nput new h 7",
)
# Exponential gates and a normalizer, as in sLSTM (Beck et al. 2024), and an input of the sequence.
THREE_STATES = derived(
    "cell 1 three_states\ninputs z i f o\nrecurrent z i f o\nstates h c n\nvectors q\nsequence bias",
    keep_new=("c", "n"),
    forward="a z\na i\na f\na o\ns c\ns n\nu bias\nv q\ntanh 0\nadd 1 6\nneg 9\nexp 10\nsigmoid 2\nsigmoid 3\n"
    "mul 12 4\nmul 11 8\nadd 14 15\nmul 12 5\nadd 17 11\nconst 1.0\nadd 18 19\ndiv 16 20\nmul 21 13\nmul 22 7\n"
    "add 22 23\nput new h 24\nput new c 16\nput new n 18",
)  # fmt: skip
# The layer gives something other than the state; the recurrent product takes a rate; only one gate of two recurs.
OUTPUT = derived(
    "cell 1 output\ninputs a b\nrecurrent a\nstates v w\nvectors p\nstep k",
    operand="s v\nv p\nu k\nsigmoid 0\nmul 3 1\nadd 4 2\nput operand 5",
    forward="a a\nx b\ns v\ns w\nu k\nv p\ntanh 0\nmul 6 4\nconst 0.9\nmul 2 8\nadd 9 7\nsub 1 3\nmul 11 5\nadd 3 12\n"
    "sigmoid 10\nmul 14 13\nput new v 10\nput new w 13\nput y 15",
)  # fmt: skip
GIVEN = derived(
    "cell 1 given\ninputs h f g\nrecurrent f\nstates h\ngiven",
    forward="x h\na f\nx g\ns h\nsigmoid 1\nmul 4 3\nadd 0 5\nrelu 2\nadd 6 7\ntanh 8\nput new h 9",
)  # fmt: skip
GIVEN_ALONE = derived(
    "cell 1 given_alone\ninputs z f\nstates c\nvectors p\ngiven",
    forward="x z\nx f\ns c\nv p\nmul 3 2\nadd 1 4\nsigmoid 5\nsub 2 0\nmul 6 7\nadd 0 8\nput new c 9",
)
FIVE_GATES = derived(
    "cell 1 five_gates\ninputs a b c d e\nrecurrent e a d b c\nstates h",
    forward="a a\na b\na c\nx d\nr d\na e\ns h\ntanh 0\nsigmoid 1\nmul 7 8\nsub 6 9\nmul 2 10\nadd 9 11\nmul 3 4\n"
    "add 12 13\nsigmoid 5\nmul 14 15\ntanh 16\nput new h 17",
)  # fmt: skip
MORE_RECURRENT = derived(
    "cell 1 more_recurrent\ninputs a b\nrecurrent c b d e f g h a\nstates h w\nstep u",
    forward="a a\na b\nr c\nr d\nr e\nr f\nr g\nr h\ns w\nu u\nadd 2 3\nsub 10 4\nadd 11 5\nsub 12 6\nmul 13 7\n"
    "tanh 14\nmul 0 1\ntanh 16\nadd 15 17\nmul 9 8\nadd 18 19\ntanh 20\nput new h 21\nput new w 18",
)  # fmt: skip
NO_INPUTS = derived(
    "cell 1 no_inputs\nrecurrent h\nstates h\nsequence i",
    forward="r h\nu i\nadd 0 1\ntanh 2\nput new h 3",
)
# Old states become new ones, in another place.
SWAP = derived(
    "cell 1 swap\ninputs a\nrecurrent a\nstates h c d e",
    forward="a a\ns h\ns c\ns d\ns e\ntanh 0\nadd 5 3\nput new h 2\nput new c 4\nput new d 1\nput new e 6\nput y 3",
)
# The layer norm of a state on its way to the output, and of a sum of gates.
NORMED = derived(
    "cell 1 normed\ninputs i f g\nrecurrent i f g\nstates h c\nvectors gain shift",
    keep_new=("c",),
    forward="a i\na f\na g\ns c\nv gain\nv shift\nconst 1e-05\nsigmoid 0\nsigmoid 1\nlayer_norm 2 6\ntanh 9\n"
    "mul 8 3\nmul 7 10\nadd 11 12\nlayer_norm 13 6\nmul 14 4\nadd 15 5\ntanh 16\nmul 17 7\nput new h 18\nput new c 13",
)
# Norms in every section: of the operands of both products, of sums, a state, a vector and the output.
NORMED_INNER = derived(
    "cell 1 normed_inner\ninputs z n\nrecurrent z n\nstates h w\nvectors p\nstep u",
    operand="s h\nu u\nadd 0 1\nconst 0.01\nlayer_norm 2 3\nput operand 4",
    first="a z\nx n\ns h\nconst 0.01\nlayer_norm 0 3\nsigmoid 4\nlayer_norm 2 3\nmul 6 5\nput inner 7\nput cross 0 5\n"
    "put cross 1 1",
    forward="cross 0\ncross 1\ni\ns h\ns w\nv p\nconst 0.01\nadd 1 2\nlayer_norm 7 6\ntanh 8\nlayer_norm 5 6\n"
    "mul 9 10\nsub 3 11\nmul 0 12\nadd 11 13\nadd 4 14\nconst 0.5\nmul 15 16\nlayer_norm 17 6\n"
    "put new h 14\nput new w 17\nput y 18",
)  # fmt: skip
# Every function.
FUNCTION_CELL = derived(
    "cell 1 functions\ninputs a b\nrecurrent a b\nstates h s2 s3 s4\nvectors v",
    keep_new=("s4",),
    forward="a a\na b\ns h\ns s2\ns s3\ns s4\nv v\nabs 0\nconst 0.5\nadd 7 8\nlog 9\nsqrt 9\nlog1p 7\nneg 7\nexp 13\n"
    "expm1 13\nmin 0 1\nmax 2 3\nlt 4 5\nle 0 1\nmul 19 10\nwhere 18 11 20\nsign 1\nmul 22 12\nrelu 1\neq 0 0\n"
    "mul 25 24\nadd 14 15\nsub 27 16\ntanh 28\nsigmoid 17\nmul 30 29\ndiv 21 9\nadd 31 32\ntanh 33\nadd 23 26\n"
    "tanh 35\nmul 36 6\nmul 34 8\nmul 5 8\nadd 39 38\nthrough 34 37 8\n"
    "put new h 41\nput new s2 37\nput new s3 34\nput new s4 40",
)  # fmt: skip

CELLS = {
    text.split("\n")[0].split(" ")[2]: text
    for text in (
        LSTM, DECAY_GRU, IND_RNN, INNER, INNER_ALONE, THREE_STATES, OUTPUT, GIVEN, GIVEN_ALONE, FIVE_GATES,
        MORE_RECURRENT, NO_INPUTS, SWAP, NORMED, NORMED_INNER, FUNCTION_CELL,
    )
}  # fmt: skip
