"""Wire messages, generated from the .proto files of this folder by `make proto`; nothing here is edited by hand."""
