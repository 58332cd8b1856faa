package config

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Rate is a speed in bits per second; 0: unlimited.
type Rate int64

// BytesPerSecond of the rate; 0: unlimited.
func (r Rate) BytesPerSecond() int64 { return int64(r) / 8 }

// Size is a number of bytes.
type Size int64

var quantity = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)$`)

var rateUnits = map[string]float64{"bps": 1, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9}

var sizeUnits = map[string]float64{
	"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// ParseRate reads "unlimited" or a number with bps, kbps, Mbps or Gbps (powers of 1000, bits).
func ParseRate(s string) (Rate, error) {
	if s == "unlimited" || s == "" {
		return 0, nil
	}
	n, err := parseQuantity(s, rateUnits)
	if err != nil || n < 8 {
		return 0, fmt.Errorf("%q is not a rate: write unlimited, or a number with bps, kbps, Mbps or Gbps, such as 200Mbps", s)
	}
	return Rate(n), nil
}

// ParseSize reads a number of bytes with an optional unit: kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024).
func ParseSize(s string) (Size, error) {
	n, err := parseQuantity(s, sizeUnits)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a size: write a number of bytes, or one with MB, GB, MiB or GiB, such as 20GiB", s)
	}
	return Size(n), nil
}

func parseQuantity(s string, units map[string]float64) (int64, error) {
	m := quantity.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return 0, fmt.Errorf("%q is not a quantity", s)
	}
	unit, ok := units[strings.ToLower(m[2])]
	if !ok {
		return 0, fmt.Errorf("%q has no known unit", s)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil || n*unit >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is out of range", s)
	}
	return int64(n * unit), nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (r *Rate) UnmarshalYAML(n *yaml.Node) error {
	v, err := ParseRate(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return notA(n, "Rate")
	}
	*r = v
	return nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	v, err := ParseSize(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return notA(n, "Size")
	}
	*s = v
	return nil
}
