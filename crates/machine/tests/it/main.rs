//! What the machine crate promises, tried from outside it.

mod confinement;
