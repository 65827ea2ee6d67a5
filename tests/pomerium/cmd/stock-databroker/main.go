//go:build embed_pomerium

// Command stock-databroker serves the databroker of Pomerium v0.32.0 alone, to compare answers and speed with.
package main

import (
	"os"

	"databroker-host/tests/pomerium/stock"
)

func main() {
	os.Exit(stock.Main(os.Args[1:], os.Stdout, os.Stderr))
}
