// Command relay carries connections of a listener that it inherited to an address: `relay DESCRIPTOR ADDRESS`. The listener belongs to the
// network of the process that opened it, the address to that of this process, so the relay joins two networks without an interface between
// them.
package main

import (
	"io"
	"log"
	"net"
	"os"
	"strconv"
)

func main() {
	descriptor, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.FileListener(os.NewFile(uintptr(descriptor), "listener"))
	if err != nil {
		log.Fatal(err)
	}
	for {
		outside, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go join(outside, os.Args[2])
	}
}

// join copies both directions, and passes the end of each on, until both have ended.
func join(outside net.Conn, address string) {
	defer outside.Close()
	inside, err := net.Dial("tcp", address)
	if err != nil {
		log.Print(err)
		return
	}
	defer inside.Close()
	answered := make(chan struct{})
	go func() {
		copyOneWay(outside, inside)
		close(answered)
	}()
	copyOneWay(inside, outside)
	<-answered
}

func copyOneWay(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		// The other direction would wait for an end that nobody sends.
		to.Close()
		from.Close()
		return
	}
	to.(*net.TCPConn).CloseWrite()
}
