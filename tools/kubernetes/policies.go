package main

import (
	"context"
	"flag"
	"sync"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const policySyncPeriod = time.Minute

// policies enforces the NetworkPolicies of the pods of one node, with kube-router's controller: it alone of kube-router's parts, because the
// routes and services of the node are made by others. It ends if the API server or the node's object is not there yet.
func policies() {
	kubeconfig := flag.String("kubeconfig", "", "file that leads to the API server")
	node := flag.String("node", "", "name of the node")
	services := flag.String("services", "", "range of the addresses of services")
	flag.Parse()
	loaded, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	check(err)
	client, err := kubernetes.NewForConfig(loaded)
	check(err)

	config := options.NewKubeRouterConfig()
	config.EnableIPv4, config.EnableIPv6 = true, false
	config.HostnameOverride = *node
	config.ClusterIPCIDRs = []string{*services}
	config.IPTablesSyncPeriod = policySyncPeriod

	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	declared := factory.Networking().V1().NetworkPolicies().Informer()
	ctx := context.Background()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	rules, sets, err := netpol.NewIPTablesHandlers(config)
	check(err)
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, declared, namespaces, &sync.Mutex{}, rules, sets)
	check(err)
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, namespaces: controller.NamespaceEventHandler, declared: controller.NetworkPolicyEventHandler,
	} {
		_, err := informer.AddEventHandler(handler)
		check(err)
	}

	// The controller blocks until somebody takes its heartbeats.
	heartbeats := make(chan *healthcheck.ControllerHeartbeat)
	go func() {
		for range heartbeats {
		}
	}()
	running := &sync.WaitGroup{}
	running.Add(1)
	controller.Run(heartbeats, ctx.Done(), running)
}

func check(err error) {
	if err != nil {
		klog.Fatal(err)
	}
}
