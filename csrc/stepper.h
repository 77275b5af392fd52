// The functions of the module _C: a stack of layers that is run a few steps at a time (rnnkernels/stepper.py).
#pragma once
#include <Python.h>

extern PyMethodDef kStepperMethods[];
