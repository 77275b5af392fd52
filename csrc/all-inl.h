// Everything that is compiled once per instruction set, in order.
#include "vec-inl.h"
#include "gemm-inl.h"
#include "pairs-inl.h"
#include "quads-inl.h"
#include "factor-inl.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "forward-inl.h"
#include "backward-inl.h"
#include "schedule-inl.h"
#undef INLINE
