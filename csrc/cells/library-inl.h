// All cells.
#pragma once
#include "gru-inl.h"
#include "gru_reset_before-inl.h"
#include "lstm-inl.h"
#include "rnn-inl.h"
