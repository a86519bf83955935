# frozen_string_literal: true

# What a test can query and control in this Rails. None of it exists in GitLab, except this, which tells that the
# process responds:
#
#   GET    /-/readiness
#
#   GET    /-/counters         {"GET /api/v4/internal/check": 3, …}: the requests that reached Rails
#   POST   /-/counters/reset
#   POST   /-/redis?up=false   what `check` reports from now on
#   POST   /-/slow?ms=100      how long each request takes longer from now on
#   POST   /-/release          let the `allowed` requests go that are held open
#   DELETE /-/keys/:id         remove an SSH key, as its owner would
#   POST   /-/unblock/:id      let a user in again
class Controls
  MUTEX = Mutex.new
  RELEASED = ConditionVariable.new
  private_constant :MUTEX, :RELEASED

  class << self
    def count(name)
      MUTEX.synchronize { @counts[name] += 1 }
    end

    def counts
      MUTEX.synchronize { @counts.dup }
    end

    def reset
      MUTEX.synchronize { @counts = Hash.new(0) }
    end

    # Holds a request open for as long as a test needs it to be, however slow the machine is.
    def wait_for_release
      MUTEX.synchronize { RELEASED.wait(MUTEX) until @released }
      true
    end

    def release
      MUTEX.synchronize { @released = true }
      RELEASED.broadcast
      true
    end

    attr_accessor :redis_up, :slow_s
  end

  reset
  self.slow_s = 0
  self.redis_up = true
  @released = false

  # Middleware that counts requests.
  class Count
    # Unlike the counters, this file outlives the process.
    ARRIVED = File.open(File.join(ENV.fetch('RAILS_DIR'), 'arrived.log'), 'a').tap { |file| file.sync = true }
    private_constant :ARRIVED

    def initialize(app)
      @app = app
    end

    def call(env)
      Controls.count("#{env['REQUEST_METHOD']} #{env['SCRIPT_NAME']}#{env['PATH_INFO']}")
      ARRIVED.write("#{env['HTTP_X_REQUEST_ID']}\n")
      sleep(Controls.slow_s)
      @app.call(env)
    end
  end

  def call(env)
    request = Rack::Request.new(env)
    case [request.request_method, request.path_info]
    in ['GET', '/counters'] then json(Controls.counts)
    in ['POST', '/counters/reset'] then json(Controls.reset)
    in ['GET', '/readiness'] then json({ status: 'ok' })
    in ['POST', '/slow'] then json(Controls.slow_s = request.params['ms'].to_f / 1000)
    in ['POST', '/release'] then json(Controls.release)
    in ['POST', '/redis'] then json(Controls.redis_up = request.params['up'] != 'false')
    in ['POST', %r{\A/unblock/\d+\z} => path] then json(unblock(path))
    in ['DELETE', %r{\A/keys/\d+\z} => path] then json(delete_key(path))
    else [404, {}, []]
    end
  end

  private

  def delete_key(path)
    ActiveRecord::Base.connection_pool.with_connection { Key.where(id: path.delete('^0-9')).delete_all }
  end

  def unblock(path)
    ActiveRecord::Base.connection_pool.with_connection { User.where(id: path.delete('^0-9')).update_all(blocked: false) }
  end

  def json(object)
    [200, { 'Content-Type' => 'application/json' }, [object.to_json]]
  end
end
