// Pins and builds the programs that generation and tests run against; nothing of the product is written in Go.
module llamesh/tools

go 1.24

require github.com/bufbuild/protovalidate v1.2.2 // indirect
