//! The messages and enums of all compiled proto files, as static tables.
