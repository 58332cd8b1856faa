// Package demo runs a whole fabric in one process: nine agents, each with an embedded registry on a loopback address of its own.
package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// Site is one agent of the fabric and where it is reached.
type Site struct {
	Name     string `json:"name"`
	Group    string `json:"group"`
	Registry string `json:"registry"`
	Fabric   string `json:"fabric"`
	HTTP     string `json:"http"`
	Raft     string `json:"raft"`
	Socket   string `json:"socket"`
	DataDir  string `json:"dataDir"`
}

// Fabric is what fabric.json in the demo's folder holds.
type Fabric struct {
	SchemaVersion int    `json:"schemaVersion"`
	Sites         []Site `json:"sites"`
}

var plan = []struct{ name, group string }{
	{"hq-a", "hq"},
	{"hq-b", "hq"},
	{"hq-c", "hq"},
	{"gd-a", "hq/guangdong"},
	{"hn-a", "hq/hunan"},
	{"sz-a", "hq/guangdong/shenzhen"},
	{"fs-a", "hq/guangdong/foshan"},
	{"cs-a", "hq/hunan/changsha"},
	{"zz-a", "hq/hunan/zhuzhou"},
}

// open reads the fabric that a folder holds, or lays out a new one there. Addresses stay what they were, since the agents' raft logs know them.
func open(dir string) (*Fabric, error) {
	file := filepath.Join(dir, "fabric.json")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return create(dir, file)
	}
	if err != nil {
		return nil, err
	}
	f := &Fabric{}
	if err := json.Unmarshal(data, f); err != nil || f.SchemaVersion != 1 || len(f.Sites) != len(plan) {
		return nil, fmt.Errorf("%s is not a demo's fabric (%v); name another folder with --dir, or remove it", file, err)
	}
	for _, s := range f.Sites {
		for _, addr := range []string{s.Registry, s.Fabric, s.HTTP, s.Raft} {
			if !free(addr) {
				return nil, fmt.Errorf("%s of site %s is in use; stop what listens there (another demo?), or name another folder with --dir", addr, s.Name)
			}
		}
	}
	return f, nil
}

func create(dir, file string) (*Fabric, error) {
	f, err := layout(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, err
	}
	return f, os.WriteFile(file, append(data, '\n'), 0o600)
}

// layout gives each site an address of its own in 127.0.0.0/8 with the usual ports, and its registry a port of 127.0.0.1, the one address to which every
// client (crane too) pushes without TLS unasked. Where the system has 127.0.0.1 only, or all are taken, it takes ports that are free.
func layout(dir string) (*Fabric, error) {
	for net3 := 1; net3 <= 250; net3++ {
		f := &Fabric{SchemaVersion: 1}
		ok := true
		for i, p := range plan {
			host := fmt.Sprintf("127.0.%d.%d", net3, i+1)
			registry := fmt.Sprintf("127.0.0.1:%d", 5000+10*(net3-1)+i+1)
			s := Site{Name: p.name, Group: p.group, Registry: registry, Fabric: host + ":7400", Raft: host + ":7401", HTTP: host + ":7402"}
			ok = ok && free(s.Registry) && free(s.Fabric) && free(s.Raft) && free(s.HTTP)
			f.Sites = append(f.Sites, s)
		}
		if ok {
			return f, f.paths(dir)
		}
	}
	f := &Fabric{SchemaVersion: 1}
	for _, p := range plan {
		s := Site{Name: p.name, Group: p.group}
		for _, addr := range []*string{&s.Registry, &s.Fabric, &s.Raft, &s.HTTP} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			defer l.Close() // until all are chosen, so that none is chosen twice
			*addr = l.Addr().String()
		}
		f.Sites = append(f.Sites, s)
	}
	return f, f.paths(dir)
}

func (f *Fabric) paths(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for i := range f.Sites {
		s := &f.Sites[i]
		s.DataDir = filepath.Join(abs, s.Name)
		s.Socket = filepath.Join(s.DataDir, "fanoutd.sock")
		if len(s.Socket) > 100 {
			s.Socket = filepath.Join(os.TempDir(), fmt.Sprintf("fanout-demo-%d-%s.sock", os.Getpid(), s.Name))
		}
	}
	return nil
}

func free(addr string) bool {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}
